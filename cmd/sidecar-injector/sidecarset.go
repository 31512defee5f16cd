package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"understudy.mesh/cmd/sidecar-injector/internal/kruise"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/pkg/inject"
)

// sidecarSetOptions are the flags of sidecarset.
type sidecarSetOptions struct {
	namespace, workload, file string
	settings                  settingsFlags
	api, output, diff         string
}

func newSidecarSetCommand(stdin io.Reader) *cobra.Command {
	var o sidecarSetOptions
	cmd := &cobra.Command{
		Use:   "sidecarset -n NAMESPACE",
		Short: "Print the settings as SidecarSets of OpenKruise",
		Long: `Prints a SidecarSet with HotUpgrade for each Deployment of the namespace, or for the workloads of a file: what the injector would put
into their pods, with two slots. OpenKruise injects those of them that have the label sidecarset-injected=true, and upgrades them in place
when the image changes. Without a cluster and a file it prints one for any workload of the namespace, whose name is then in the label app.

What the workload itself has to have is said on standard error.`,
		Example: "  sidecar-injector sidecarset -n shop --workload nginx | kubectl apply -f -\n" +
			"  sidecar-injector sidecarset -n shop --workload nginx --diff <(kubectl get sidecarset shop-nginx -o yaml)",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return runtimeError(o.run(cmd.Context(), stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the pods")
	f.StringVar(&o.workload, "workload", "", "only this one: a Deployment's NAME, or KIND/NAME")
	f.StringVarP(&o.file, "filename", "f", "", "file of workloads, instead of the cluster's; - is stdin")
	o.settings.add(f)
	f.StringVar(&o.api, "api", string(inject.KruiseV1alpha1), "version of apps.kruise.io: v1alpha1, or v1beta1 (Kruise 1.9)")
	f.StringVarP(&o.output, "output", "o", "yaml", "yaml or json")
	f.StringVar(&o.diff, "diff", "", "file of SidecarSets that there are: say instead what differs, and exit with 1 if only new pods get it")
	return cmd
}

func (o sidecarSetOptions) validate() error {
	switch {
	case o.namespace == "":
		return errors.New("flag -n: give the namespace of the pods")
	case o.api != string(inject.KruiseV1alpha1) && o.api != string(inject.KruiseV1beta1):
		return fmt.Errorf("flag --api: %q: give %s or %s", o.api, inject.KruiseV1alpha1, inject.KruiseV1beta1)
	case o.output != "yaml" && o.output != "json":
		return fmt.Errorf("flag -o: %q: give yaml or json", o.output)
	case o.file == "-" && o.diff == "-":
		return errors.New("flags -f and --diff: only one of them can be stdin")
	}
	return o.settings.check()
}

func (o sidecarSetOptions) run(ctx context.Context, stdin io.Reader, out, notes io.Writer) error {
	sets, err := o.sets(ctx, stdin, notes)
	if err != nil {
		return err
	}
	if o.diff != "" {
		return o.compare(sets, stdin, out)
	}
	for i, set := range sets {
		text, err := json.MarshalIndent(set, "", "  ")
		if err == nil && o.output == "yaml" {
			if text, err = yaml.JSONToYAML(text); i > 0 {
				text = append([]byte("---\n"), text...)
			}
		}
		if err != nil {
			return fmt.Errorf("write SidecarSet %s: %w", set.Metadata.Name, err)
		}
		if _, err := fmt.Fprintf(out, "%s\n", bytes.TrimSuffix(text, []byte("\n"))); err != nil {
			return err
		}
	}
	return nil
}

// sets are those of the workloads; what a user should know of each goes to notes.
func (o sidecarSetOptions) sets(ctx context.Context, stdin io.Reader, notes io.Writer) ([]*inject.SidecarSet, error) {
	found, err := o.settings.open(ctx, notes)
	if err != nil {
		return nil, err
	}
	profiles, err := found.of(ctx, o.namespace)
	if err != nil {
		return nil, err
	}
	namespace := inject.Namespace{Name: o.namespace}
	if found.cluster != nil {
		if namespace.Labels, err = found.cluster.Labels(ctx, o.namespace); err != nil {
			return nil, err
		}
	}
	workloads, err := o.workloads(ctx, stdin, found)
	if err != nil {
		return nil, err
	}
	var sets []*inject.SidecarSet
	for _, w := range workloads {
		settings, warnings, err := inject.Settings(w.Pod, profiles.Base(o.namespace))
		var set *inject.SidecarSet
		var more []string
		if err == nil {
			set, more, err = w.SidecarSet(inject.KruiseVersion(o.api), settings, namespace)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s/%s: %w", w.Kind, o.namespace, cmp.Or(w.Name, "*"), err)
		}
		if inject.Decide(profiles.Policy(), namespace, w.Pod).Inject {
			more = append(more, "the injector's webhook injects these pods too: give them the label "+inject.LabelInject+"=false")
		}
		for _, line := range append(warnings, more...) {
			fmt.Fprintf(notes, "%s: %s\n", set.Metadata.Name, line)
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// workloads are those of the file, or of the cluster; without either, any.
func (o sidecarSetOptions) workloads(ctx context.Context, stdin io.Reader, found *settings) ([]offline.Workload, error) {
	switch {
	case o.file != "":
		return o.fromFile(stdin)
	case found.cluster == nil:
		_, name, ok := strings.Cut(o.workload, "/")
		if !ok {
			name = o.workload
		}
		return []offline.Workload{offline.AnyWorkload(name)}, nil
	case o.workload != "":
		w, err := found.cluster.Workload(ctx, o.namespace, o.workload)
		return []offline.Workload{w}, err
	}
	all, err := found.cluster.Deployments(ctx, o.namespace)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("namespace %s: there is no Deployment in it: give the workloads with -f", o.namespace)
	}
	return all, err
}

// fromFile are the workloads of the file that are of the namespace, or of none.
func (o sidecarSetOptions) fromFile(stdin io.Reader) ([]offline.Workload, error) {
	all, err := offline.ReadWorkloads(o.file, stdin)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(w offline.Workload) bool {
		is := o.workload == "" || o.workload == w.Name || strings.EqualFold(o.workload, w.Kind+"/"+w.Name)
		return !is || w.Namespace != "" && w.Namespace != o.namespace
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: there is no such workload of namespace %s in it", o.file, o.namespace)
	}
	return all, nil
}

// compare says of each set how it differs from the one of its name that there is.
func (o sidecarSetOptions) compare(sets []*inject.SidecarSet, stdin io.Reader, out io.Writer) error {
	there := map[string][]byte{}
	err := offline.EachObject(o.diff, stdin, func(text []byte) error {
		var object struct {
			Kind     string                `json:"kind"`
			Metadata struct{ Name string } `json:"metadata"`
		}
		if err := json.Unmarshal(text, &object); err != nil || object.Kind != "SidecarSet" {
			return fmt.Errorf("want a SidecarSet, and this is a %q", object.Kind)
		}
		there[object.Metadata.Name] = text
		return nil
	})
	if err != nil {
		return err
	}
	newPods := false
	for _, set := range sets {
		before, ok := there[set.Metadata.Name]
		if !ok {
			return fmt.Errorf("%s: there is no SidecarSet %s in it", o.diff, set.Metadata.Name)
		}
		after, err := json.Marshal(set)
		if err != nil {
			return fmt.Errorf("write SidecarSet %s: %w", set.Metadata.Name, err)
		}
		differences, err := kruise.Diff(before, after)
		if err != nil {
			return err
		}
		newPods = tell(out, set.Metadata.Name, differences) || newPods
	}
	if newPods {
		return errors.New("running pods cannot take all of it: apply it, and restart the workload")
	}
	return nil
}

// tell writes what differs, and reports whether only new pods get it.
func tell(out io.Writer, name string, differences []kruise.Difference) (newPods bool) {
	if len(differences) == 0 {
		fmt.Fprintf(out, "%s: no difference\n", name)
		return false
	}
	for _, d := range differences {
		if !d.InPlace {
			fmt.Fprintf(out, "%s: field %s: needs new pods\n", name, d.Field)
			newPods = true
		}
	}
	if !newPods {
		fmt.Fprintf(out, "%s: image only: in place\n", name)
	}
	return newPods
}
