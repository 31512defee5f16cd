package node

import (
	"os"
	"strings"
	"testing"
)

// The first processes of a node mount over /run and /var/lib: outside of one they touch nothing.
func TestOnTheMachineItself(t *testing.T) {
	c := Config{State: t.TempDir(), CgroupRoot: "/none"}
	_, progress, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer progress.Close()
	for name, run := range map[string]func() error{
		"Init": func() error { return Init(c, []string{"/bin/false"}, progress) },
		"Run":  func() error { return Run(t.Context(), c, progress) },
	} {
		if err := run(); err == nil || !strings.Contains(err.Error(), "the machine itself") {
			t.Errorf("%s on the machine itself: %v", name, err)
		}
	}
	if left, err := os.ReadDir(c.State); err != nil || len(left) > 0 {
		t.Errorf("left in the state: %v, %v", left, err)
	}
}
