package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"understudy.mesh/tests/lab"
)

// sidecarSet is as much of the ASM manual's SidecarSet as is carried out.
type sidecarSet struct {
	Spec struct {
		Containers, InitContainers []sidecarContainer
		Volumes                    []struct {
			Name     string
			EmptyDir *struct{ Medium string }
		}
	}
}

type sidecarContainer struct {
	Name, Image     string
	Args            []string
	Env             []environmentVariable
	Lifecycle       lifecycle
	UpgradeStrategy struct{ UpgradeType, HotUpgradeEmptyImage string }
	VolumeMounts    []struct{ Name, MountPath string }
}

type lifecycle struct {
	PostStart, PreStop struct{ Exec struct{ Command []string } }
}

type environmentVariable struct {
	Name, Value string
	ValueFrom   struct {
		FieldRef        struct{ FieldPath string }
		ConfigMapKeyRef struct{ Name, Key string }
	}
}

// downward is what the fields of the test's pod, and the ConfigMap of the manual, say.
var downward = map[string]string{
	"metadata.name": "app-0", "metadata.namespace": "default", "status.podIP": lab.PodIP, "spec.serviceAccountName": "default",
	"metadata.labels['app']": "nginx", "ack-cluster-profile/clusterid": "c0123456789",
}

// environment is what the kubelet makes of the container's env. A label that the pod does not have
// is empty.
func (c sidecarContainer) environment() []string {
	var env []string
	for _, e := range c.Env {
		switch {
		case e.ValueFrom.FieldRef.FieldPath != "":
			e.Value = downward[e.ValueFrom.FieldRef.FieldPath]
		case e.ValueFrom.ConfigMapKeyRef.Key != "":
			e.Value = downward[e.ValueFrom.ConfigMapKeyRef.Name+"/"+e.ValueFrom.ConfigMapKeyRef.Key]
		}
		env = append(env, e.Name+"="+e.Value)
	}
	return env
}

var reference = regexp.MustCompile(`\$\(([A-Z_]+)\)`)

// arguments are the container's, with $(NAME) replaced as the kubelet does.
func (c sidecarContainer) arguments() []string {
	var args []string
	for _, arg := range c.Args {
		args = append(args, reference.ReplaceAllStringFunc(arg, func(ref string) string {
			prefix := ref[2:len(ref)-1] + "="
			env := c.environment()
			if i := slices.IndexFunc(env, func(e string) bool { return len(e) >= len(prefix) && e[:len(prefix)] == prefix }); i >= 0 {
				return env[i][len(prefix):]
			}
			return ref
		}))
	}
	return args
}

func readTestdata(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	must(t, err)
	must(t, json.Unmarshal(b, into))
}

// volumes are the container's mounts of emptyDirs; the lab has the rest.
func (s sidecarSet) volumes(c sidecarContainer) []lab.Volume {
	volumes := []lab.Volume{{Name: lab.ShmVolume, Mount: "/dev/shm", Mode: "1777"}}
	for _, m := range c.VolumeMounts {
		for _, v := range s.Spec.Volumes {
			if v.Name == m.Name && v.EmptyDir != nil {
				volumes = append(volumes, lab.Volume{Name: v.Name, Mount: filepath.Clean(m.MountPath), Disk: v.EmptyDir.Medium != "Memory"})
			}
		}
	}
	return volumes
}

// TestManualSidecarSet carries the SidecarSet of the manual's chapter 7 out as it stands there, and the
// lifecycle of its chapter 8: only the configuration directory and DNS capture are added.
func TestManualSidecarSet(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		lifecycle bool // of chapter 8
	}{
		{name: "chapter 7"},
		{name: "chapter 8", lifecycle: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var set sidecarSet
			readTestdata(t, "sidecarset.json", &set)
			c := set.Spec.Containers[0]
			if tc.lifecycle {
				readTestdata(t, "lifecycle.json", &c.Lifecycle)
			}
			if c.UpgradeStrategy.UpgradeType != "HotUpgrade" || len(c.Lifecycle.PostStart.Exec.Command) == 0 {
				t.Fatalf("the fixture was not read: %+v", c)
			}
			p := newSlotPod(t, lab.SlotsOptions{
				Volumes: set.volumes(c),
				Command: c.arguments(),
				Env:     append(c.environment(), "UNDERSTUDY_CONFIG_DIR="+lab.ConfigMount+"/mesh"),
			})
			p.probes, p.statusPort = []string{lab.HealthPort}, lab.HealthPort // --statusPort 15021: the agent's server is there alone
			p.older.Name, p.empty.Name = c.Image, c.UpgradeStrategy.HotUpgradeEmptyImage
			p.inject(t, lab.KubeletOptions{PostStart: c.Lifecycle.PostStart.Exec.Command, PreStop: c.Lifecycle.PreStop.Exec.Command})
			p.mustServe(t, 0, p.older)
			load := startLoad(t, p)
			p.kruise.Upgrade(p.newer)
			p.kruise.WaitUpgraded(t)
			p.mustServe(t, 1, p.newer)
			load.check(t)
		})
	}
}
