package lab_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.mesh/tests/lab"
)

// TestSlots shows that two slots are two containers of one pod: own roots, process numbers and
// PID 1, common network, volumes and nothing else.
func TestSlots(t *testing.T) {
	l := lab.New(t)
	volumes := append(lab.Volumes(), lab.Volume{Name: "own", Mount: "/own", Private: true, Size: "64k"})
	slots := l.NewSlots(t, lab.SlotsOptions{Volumes: volumes})
	standby := lab.Image{Name: "standby", Agent: lab.StandbyBinary(t)}
	if _, err := slots.List[0].Exec(t.Context(), "true"); !errors.Is(err, lab.ErrStopped) {
		t.Errorf("a command in a container that was never started: %v", err)
	}
	for i, s := range slots.List {
		if err := s.Start(standby, "SIDECARSET_VERSION=1"); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(standby); !errors.Is(err, lab.ErrRunning) {
			t.Errorf("a second container in %s: %v", s.Name, err)
		}
		if err := os.WriteFile(filepath.Join(slots.VolumePath("own", i), "name"), []byte(s.Name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		script string
		code   int
	}{
		{"id -u | grep -qx 1337 && grep -q 'CapBnd:.*0000000000000000' /proc/self/status", 0},
		{"echo x >/tmp/x", 2},
		{"tr '\\0' ' ' </proc/1/cmdline | grep -q '^/usr/local/bin/pilot-agent proxy sidecar'", 0},
		{"test $(ls -d /proc/[0-9]* | wc -l) -lt 8", 0},
		{"test $(pwd) = /", 0},
		{"stat -c '%a %u' /etc/asm/uds | grep -qx '777 0'", 0},
		{"echo x >/own/x && echo x >/etc/istio/proxy/x && echo x >/dev/shm/x", 0},
		{"dd if=/dev/zero of=/own/big bs=1k count=100", 1},
	} {
		if got := slots.List[0].Run(t, "sh", "-c", tc.script); got.Code != tc.code {
			t.Errorf("%s: want exit status %d: %v", tc.script, tc.code, got)
		}
	}
	script := "cat /own/name; test ! -e /own/x && test -e /etc/istio/proxy/x && test -e /dev/shm/x && readlink /proc/self/ns/net"
	other := slots.List[1].Run(t, "sh", "-c", script)
	one := slots.List[0].Run(t, "readlink", "/proc/self/ns/net")
	if other.Code != 0 || other.Stdout != "istio-proxy-2"+one.Stdout {
		t.Errorf("the other slot, while the first says %q: %v", one.Stdout, other)
	}
	if code, was := slots.List[0].Stop(lab.Deadline); code != 0 || !was {
		t.Errorf("SIGTERM: exit status %d, %v", code, was)
	}
	slots.List[1].Kill()
	if left := l.Processes(); len(left) != 0 {
		t.Errorf("processes are left: %q", left)
	}
}
