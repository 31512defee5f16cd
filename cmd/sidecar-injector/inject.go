package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/pkg/inject"
)

// injectOptions are the flags of inject.
type injectOptions struct {
	file            string
	settings        settingsFlags
	namespace       string
	namespaceLabels map[string]string
}

func newInjectCommand(stdin io.Reader) *cobra.Command {
	var o injectOptions
	cmd := &cobra.Command{
		Use:   "inject -f FILE",
		Short: "Inject into the workloads of a file",
		Long: `Prints the file with the proxy put into each of its workloads, as istioctl kube-inject does. What is no workload, and workloads
that are not to be injected, stay as they are. Unless --namespace-labels says otherwise, the namespace counts as labelled
istio-injection=enabled. Its settings are those of the cluster that kubectl would ask; with --settings or --offline none is asked.
A mistake anywhere prints nothing.`,
		Example: "  kubectl apply -f <(sidecar-injector inject -f app.yaml)\n" +
			"  sidecar-injector inject -n shop --settings profile.yaml -f - < app.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.file == "" {
				return errors.New("flag -f: give a file of workloads, or - for stdin")
			}
			if err := o.settings.check(); err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "filename", "f", "", "file of workloads; - is stdin")
	o.settings.add(f)
	f.StringVarP(&o.namespace, "namespace", "n", "default", "namespace of workloads that do not say theirs")
	f.StringToStringVar(&o.namespaceLabels, "namespace-labels", map[string]string{inject.LabelInjection: "enabled"}, "labels of the namespace")
	return cmd
}

func (o injectOptions) run(ctx context.Context, stdin io.Reader, out, notes io.Writer) error {
	settings, err := o.settings.open(ctx, notes)
	if err != nil {
		return err
	}
	text, err := offline.Rewrite(o.file, stdin, func(w offline.Workload) ([]byte, error) {
		return o.patch(ctx, w, settings, notes)
	})
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// patch is of one workload; what a user should know of it goes to notes.
func (o injectOptions) patch(ctx context.Context, w offline.Workload, found *settings, notes io.Writer) ([]byte, error) {
	namespace := inject.Namespace{Name: cmp.Or(w.Namespace, o.namespace), Labels: o.namespaceLabels}
	profiles, err := found.of(ctx, namespace.Name)
	if err != nil {
		return nil, err
	}
	say := func(lines []string) {
		for _, line := range lines {
			fmt.Fprintf(notes, "%s %s/%s: %s\n", w.Kind, namespace.Name, w.Name, line)
		}
	}
	verdict := inject.Decide(profiles.Policy(), namespace, w.Pod)
	say(verdict.Warnings)
	if !verdict.Inject {
		say([]string{"not injected: " + verdict.Rule})
		return nil, nil
	}
	settings, warnings, err := inject.Settings(w.Pod, profiles.Base(namespace.Name))
	if err != nil {
		return nil, err
	}
	say(warnings)
	ops, warnings, err := w.Patch(settings, namespace, found.modern(ctx))
	say(warnings)
	return ops, err
}
