package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/pkg/inject"
)

// settingsFlags say where a command has its settings from.
type settingsFlags struct {
	files      []string
	kubeconfig string
	offline    bool
	kubelet    string // the version of the oldest one; "": the cluster says
}

func (s *settingsFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&s.files, "settings", nil, "file of SidecarProfiles, instead of the cluster's; may be given several times")
	f.StringVar(&s.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	f.StringVar(&s.kubelet, "kubelet-version", "", "that of the oldest node, such as v1.33.0 (default: the cluster's; where none is asked, older than that)")
	f.BoolVar(&s.offline, "offline", false, "ask no cluster: without --settings, the defaults count")
}

func (s *settingsFlags) check() error {
	if s.offline && s.kubeconfig != "" {
		return errors.New("flags --offline and --kubeconfig: give one of them")
	}
	return checkKubelet(s.kubelet)
}

// settings are those of files, or of a cluster as far as it was asked.
type settings struct {
	profiles *offline.Profiles
	cluster  *cluster.Cluster // nil: nobody is asked
	asked    map[string]bool  // namespaces
	// modern reports whether every node has a modern kubelet; it asks the cluster once, if anybody wants to know.
	modern func(context.Context) bool
}

// open reads the files. Without any, the cluster of the kubeconfig is asked, if there is one and it answers; notes says so if it
// does not.
func (s *settingsFlags) open(ctx context.Context, notes io.Writer) (*settings, error) {
	profiles, err := offline.ReadProfiles(s.files, defaultImage())
	if err != nil {
		return nil, err
	}
	found := &settings{profiles: profiles, asked: map[string]bool{}}
	found.modern = s.kubelets(found, notes)
	if s.offline || len(s.files) > 0 {
		return found, nil
	}
	c, err := cluster.Open(s.kubeconfig)
	if cluster.IsNone(err) && s.kubeconfig == "" {
		return found, nil
	} else if err != nil {
		return nil, err
	}
	found.cluster = c
	err = found.ask(ctx, offline.InjectorNamespace)
	var said apierrors.APIStatus
	switch {
	case err == nil:
	case errors.As(err, &said) || s.kubeconfig != "":
		return nil, fmt.Errorf("%w; to go without the cluster: --settings FILE, or --offline", err)
	default:
		fmt.Fprintf(notes, "the cluster does not answer, so its settings do not count, but the defaults (--offline asks none): %v\n", err)
		found.cluster = nil
	}
	return found, nil
}

// kubelets returns what knows about every node, by the flag or the cluster. Nodes that cannot be read are taken for old ones.
func (s *settingsFlags) kubelets(found *settings, notes io.Writer) func(context.Context) bool {
	var once sync.Once
	modern, _ := inject.ParseKubelet(s.kubelet)
	return func(ctx context.Context) bool {
		once.Do(func() {
			if s.kubelet != "" || found.cluster == nil {
				return
			}
			var err error
			if modern, err = found.cluster.Modern(ctx); err != nil {
				fmt.Fprintf(notes, "the nodes count as older than Kubernetes 1.33 (--kubelet-version says otherwise): %v\n", err)
			}
		})
		return modern
	}
}

// ask reads the profile of a namespace of the cluster, once.
func (s *settings) ask(ctx context.Context, namespace string) error {
	if s.cluster == nil || s.asked[namespace] {
		return nil
	}
	s.asked[namespace] = true
	return s.cluster.AddProfile(ctx, s.profiles, namespace)
}

// of are the settings, with those of a namespace.
func (s *settings) of(ctx context.Context, namespace string) (*offline.Profiles, error) {
	return s.profiles, s.ask(ctx, cmp.Or(namespace, offline.InjectorNamespace))
}
