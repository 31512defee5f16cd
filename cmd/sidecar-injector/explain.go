package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/explain"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/pkg/inject"
)

// explainOptions are the flags of explain.
type explainOptions struct {
	file, pod       string // one of them
	settings        settingsFlags
	namespace       string
	namespaceLabels map[string]string
	output, expect  string
}

// What --expect takes.
const (
	expectInject = "inject"
	expectSkip   = "skip"
)

func newExplainCommand(stdin io.Reader) *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain -f FILE | pod/NAME",
		Short: "Say whether and how a workload would be injected",
		Long: `Says of each workload of a file whether its pods would be injected, by which rule, which rules that overrides, what single
change would make it the opposite, and every setting with its value and where that comes from. It changes nothing.

The SidecarProfiles and the labels of namespaces are those of the cluster that kubectl would ask, as the pod is with pod/NAME;
with --settings or --offline it is asked for the pod alone, or not at all.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.pod = args[0]
			}
			if err := o.validate(); err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "filename", "f", "", "file of workloads; - is stdin")
	o.settings.add(f)
	f.StringVarP(&o.namespace, "namespace", "n", "default", "namespace of workloads that do not say theirs")
	f.StringToStringVar(&o.namespaceLabels, "namespace-labels", nil, "labels of the namespace, such as istio-injection=enabled")
	f.StringVarP(&o.output, "output", "o", "", "json, or a table")
	f.StringVar(&o.expect, "expect", "", "inject or skip: exit status 1 unless that becomes of every workload")
	return cmd
}

func (o explainOptions) validate() error {
	name, ok := strings.CutPrefix(o.pod, "pod/")
	switch {
	case o.file == "" && o.pod == "":
		return errors.New("flag -f: give a file of workloads, or - for stdin; or pod/NAME")
	case o.file != "" && o.pod != "":
		return errors.New("give a file or pod/NAME, not both")
	case o.pod != "" && (!ok || name == "" || strings.Contains(name, "/")):
		return fmt.Errorf("%q: give pod/NAME", o.pod)
	case o.pod != "" && len(o.namespaceLabels) > 0:
		return errors.New("flag --namespace-labels: of pod/NAME the cluster says them")
	case o.pod != "" && o.settings.offline:
		return errors.New("flag --offline: pod/NAME is of the cluster")
	case o.output != "" && o.output != "json":
		return fmt.Errorf("flag -o: %q: give json, or nothing for a table", o.output)
	case o.expect != "" && o.expect != expectInject && o.expect != expectSkip:
		return fmt.Errorf("flag --expect: %q: give inject or skip", o.expect)
	}
	return o.settings.check()
}

func (o explainOptions) run(ctx context.Context, stdin io.Reader, out, notes io.Writer) error {
	reports, err := o.reports(ctx, stdin, notes)
	if err != nil {
		return err
	}
	write := explain.WriteText
	if o.output == "json" {
		write = explain.WriteJSON
	}
	if err := write(out, reports); err != nil {
		return err
	}
	return o.expected(reports)
}

// reports are of the pod, or of each workload of the file.
func (o explainOptions) reports(ctx context.Context, stdin io.Reader, notes io.Writer) (reports []explain.Report, err error) {
	if o.pod != "" {
		return o.podReport(ctx, notes)
	}
	workloads, err := offline.ReadWorkloads(o.file, stdin)
	if err != nil {
		return nil, err
	}
	if len(workloads) == 0 {
		return nil, fmt.Errorf("%s: there is no workload in it", o.file)
	}
	found, err := o.settings.open(ctx, notes)
	if err != nil {
		return nil, err
	}
	for _, w := range workloads {
		namespace := inject.Namespace{Name: cmp.Or(w.Namespace, o.namespace), Labels: o.namespaceLabels}
		if found.cluster != nil && len(o.namespaceLabels) == 0 {
			if namespace.Labels, err = found.cluster.Labels(ctx, namespace.Name); err != nil {
				return nil, err
			}
		}
		report, err := o.report(ctx, w, namespace, found)
		if err != nil {
			return nil, err
		}
		reports = append(reports, report)
	}
	return reports, nil
}

// podReport is of a pod of the cluster.
func (o explainOptions) podReport(ctx context.Context, notes io.Writer) ([]explain.Report, error) {
	c, err := cluster.Open(o.settings.kubeconfig)
	if err != nil {
		return nil, err
	}
	w, namespace, err := c.Pod(ctx, o.namespace, strings.TrimPrefix(o.pod, "pod/"))
	if err != nil {
		return nil, err
	}
	found, err := o.settings.open(ctx, notes)
	if err != nil {
		return nil, err
	}
	report, err := o.report(ctx, w, namespace, found)
	return []explain.Report{report}, err
}

func (o explainOptions) report(ctx context.Context, w offline.Workload, namespace inject.Namespace, found *settings) (explain.Report, error) {
	profiles, err := found.of(ctx, namespace.Name)
	if err != nil {
		return explain.Report{}, err
	}
	return explain.Of(w, profiles.Policy(), namespace, profiles.Base(namespace.Name), found.modern(ctx)), nil
}

// expected is an error if a report is not as --expect says.
func (o explainOptions) expected(reports []explain.Report) error {
	var others []string
	for _, r := range reports {
		if o.expect != "" && (r.Inject && r.Error == "") != (o.expect == expectInject) {
			others = append(others, fmt.Sprintf("%s %s/%s (%s)", r.Kind, r.Namespace, r.Name, r.Rule))
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("--expect %s: not so: %s", o.expect, strings.Join(others, ", "))
	}
	return nil
}

// defaultImage is the proxy's where no profile says: of this release.
func defaultImage() string { return "understudy/proxy:" + version }
