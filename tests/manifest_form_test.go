package tests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The manifests of manifests/, with the fields that they use and no other: a field that is
// spelled wrongly is an error. Names are those of Kubernetes and of apps.kruise.io/v1alpha1.
type (
	header struct {
		APIVersion, Kind string
		Metadata         struct {
			Name, Namespace     string
			Labels, Annotations map[string]string
		}
	}
	labelSelector struct{ MatchLabels map[string]string }
	reference     struct{ Name, Key string }
	fieldRef      struct{ FieldPath string }
	envVar        struct {
		Name, Value string
		ValueFrom   *struct {
			FieldRef        *fieldRef
			ConfigMapKeyRef *reference
		}
	}
	port struct {
		Name, Protocol      string
		ContainerPort, Port uint16
		TargetPort          uint16
	}
	container struct {
		Name, Image, ImagePullPolicy string
		Args, Command                []string
		Env                          []envVar
		Lifecycle                    struct {
			PostStart *struct {
				Exec struct{ Command []string }
			}
		}
		Ports           []port
		Resources       struct{ Limits, Requests map[string]string }
		SecurityContext struct {
			RunAsUser, RunAsGroup                                                      *int
			RunAsNonRoot, AllowPrivilegeEscalation, Privileged, ReadOnlyRootFilesystem *bool
			Capabilities                                                               struct{ Add, Drop []string }
		}
		VolumeMounts      []volumeMount
		UpgradeStrategy   struct{ UpgradeType, HotUpgradeEmptyImage string }
		PodInjectPolicy   string
		ShareVolumePolicy struct{ Type string }
	}
	volumeMount struct {
		Name, MountPath string
		ReadOnly        bool
	}
	volume struct {
		Name        string
		ConfigMap   *reference
		EmptyDir    *struct{ Medium string }
		DownwardAPI *struct {
			Items []struct {
				Path     string
				FieldRef fieldRef
			}
		}
	}
	sidecarSet struct {
		header `json:",inline"`
		Spec   struct {
			Namespace      string
			Selector       labelSelector
			UpdateStrategy struct {
				Type                      string
				Partition, MaxUnavailable int
			}
			InitContainers, Containers []container
			Volumes                    []volume
		}
	}
	deployment struct {
		header `json:",inline"`
		Spec   struct {
			Replicas int
			Selector labelSelector
			Template struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					TerminationGracePeriodSeconds int
					Containers                    []container
				}
			}
		}
	}
	service struct {
		header `json:",inline"`
		Spec   struct {
			Type     string
			Selector map[string]string
			Ports    []port
		}
	}
	configMap struct {
		header `json:",inline"`
		Data   map[string]string
	}
	imagePullJob struct {
		header `json:",inline"`
		Spec   struct {
			Image            string
			Parallelism      int
			PullPolicy       struct{ BackoffLimit, TimeoutSeconds int }
			CompletionPolicy struct {
				Type                    string
				TTLSecondsAfterFinished int
			}
		}
	}
)

// released is everything below manifests/, by file and kind.
type released struct {
	sidecarSet   sidecarSet
	deployment   deployment
	service      service
	imagePullJob imagePullJob
	configMaps   map[string]configMap
}

func readManifests(t *testing.T) *released {
	t.Helper()
	r := &released{configMaps: make(map[string]configMap)}
	targets := map[string]any{
		"apps.kruise.io/v1alpha1 SidecarSet": &r.sidecarSet, "apps.kruise.io/v1alpha1 ImagePullJob": &r.imagePullJob,
		"apps/v1 Deployment": &r.deployment, "v1 Service": &r.service,
	}
	files, err := filepath.Glob(filepath.Join(repoRoot(t), "manifests", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("manifests/*.yaml: %q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range strings.Split(string(text), "\n---\n") {
			var h header
			if err := yaml.Unmarshal([]byte(document), &h); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			kind := h.APIVersion + " " + h.Kind
			if kind == "v1 ConfigMap" {
				var m configMap
				unmarshalStrictly(t, file, document, &m)
				r.configMaps[h.Metadata.Name] = m
				continue
			}
			target := targets[kind]
			if target == nil {
				t.Fatalf("%s: %s: say here how such a one is checked, or there is a second one", file, kind)
			}
			delete(targets, kind)
			unmarshalStrictly(t, file, document, target)
		}
	}
	if len(targets) > 0 || len(r.configMaps) == 0 {
		t.Fatalf("manifests/ lacks some of %v, or a ConfigMap", targets)
	}
	return r
}

func unmarshalStrictly(t *testing.T, file, document string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
