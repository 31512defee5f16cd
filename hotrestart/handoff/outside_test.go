package handoff

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestOutside: what the other agent, which may be of another release, or a person reads of a hand-off is as it was. A
// line of the golden may be added, and none be changed or taken away: numbers, names and fields are never given
// another meaning, also when this release has no use for them any more.
func TestOutside(t *testing.T) {
	var text strings.Builder
	fmt.Fprintf(&text, "frame %s, header %d, payload %d, descriptors %d\n", frameMagic, frameHeaderSize, maxPayload, maxFrameSockets)
	fmt.Fprintf(&text, "protocol %d, reach %d\n", currentProtocol, protocolReach)
	for k := range messageKind(len(messageNames)) {
		if k.known() {
			fmt.Fprintf(&text, "message %d %s\n", k, k)
		}
	}
	for name, head := range map[string]any{
		"hello": helloHead{}, "welcome": welcomeHead{}, "refused": refusedHead{}, "state": stateHead{}, "state-end": stateEndHead{},
		"sockets": socketsHead{}, "sockets-end": socketsEndHead{}, "drained": Drained{}, "abort": abortHead{}, "inquire": inquireHead{},
		"report": Report{}, "unknown": unknownHead{}, "identity": Identity{},
	} {
		for field := range reflect.TypeOf(head).Fields() {
			fmt.Fprintf(&text, "head %s %s %s\n", name, field.Tag.Get("json"), field.Type.Kind())
		}
	}
	for _, r := range []Role{RoleStarting, RoleServing, RoleHandingOff, RoleDraining, RoleStandby} {
		fmt.Fprintf(&text, "role %s\n", r)
	}
	for _, c := range []RefusalCode{RefusedBusy, RefusedOlder, RefusedMoved, RefusedProtocol, RefusedPod, RefusedUnready} {
		fmt.Fprintf(&text, "refusal %s\n", c)
	}
	for _, c := range []AbortCode{AbortFailed, AbortStopping, AbortRefused, AbortBroken} {
		fmt.Fprintf(&text, "abort %s\n", c)
	}
	fmt.Fprintf(&text, "stopping %s\n", stoppingText)
	for _, name := range filesOf(t, "gen1") {
		fmt.Fprintf(&text, "file %s\n", name)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	golden, err := os.ReadFile("testdata/outside.txt")
	if err != nil || got != string(golden) {
		t.Errorf("testdata/outside.txt differs (%v); this release says:\n%s", err, got)
	}
}

// filesOf are the files of a generation in the hand-off directory, with their modes.
func filesOf(t *testing.T, id string) (files []string) {
	t.Helper()
	root := t.TempDir()
	startParent(t, root, id)
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if path != root && err == nil {
			name, _ := filepath.Rel(root, path)
			files = append(files, fmt.Sprintf("%s %s", info.Mode(), strings.ReplaceAll(name, ownDirectoryPrefix+uid(), ownDirectoryPrefix+"<uid>")))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
