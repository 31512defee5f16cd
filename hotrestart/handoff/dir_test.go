package handoff

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
)

func TestOpenDir(t *testing.T) {
	own := func(root string) string { return filepath.Join(root, "understudy-"+uid()) }
	for _, tc := range []struct {
		name    string
		prepare func(root string) error
		err     string
	}{
		{"fresh", func(string) error { return nil }, ""},
		{"there already", func(root string) error { return os.Mkdir(own(root), 0o700) }, ""},
		{"open to the group, as fsGroup makes it", func(root string) error {
			return errors.Join(os.Mkdir(own(root), 0o700), os.Chmod(own(root), 0o770|os.ModeSetgid))
		}, ""},
		{"an emptyDir with fsGroup", func(root string) error { return os.Chmod(root, 0o777|os.ModeSetgid) }, ""},
		{"a link", func(root string) error { return os.Symlink("/tmp", own(root)) }, "no directory"},
		{"a dangling link", func(root string) error { return os.Symlink("/nowhere", own(root)) }, "no directory"},
		{"a file", func(root string) error { return os.WriteFile(own(root), nil, 0o600) }, "no directory"},
		{"missing", func(root string) error { return os.Remove(root) }, "--handoffDir"},
		{"a file for the hand-off directory", func(root string) error {
			return errors.Join(os.Remove(root), os.WriteFile(root, nil, 0o600))
		}, "--handoffDir"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noLeaks(t)
			root := filepath.Join(t.TempDir(), "handoff")
			if err := errors.Join(os.Mkdir(root, 0o777), tc.prepare(root)); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(root, testIdentity("a"))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), root) {
					t.Errorf("%v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			info, err := os.Stat(d.path)
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
	if _, err := OpenDir(t.TempDir(), Identity{ID: "../x"}); err == nil {
		t.Error("an evil id")
	}
}

func uid() string { return strconv.Itoa(os.Geteuid()) }

// A path that is longer than any sockaddr_un.
func TestLongPath(t *testing.T) {
	noLeaks(t)
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	startParent(t, path, "old")
	var mine hotrestart.Sockets
	defer mine.Close()
	takeOver(t, mustDial(t, openTestDir(t, path, "new"), "old"), &mine)
	for name, mode := range map[string]os.FileMode{"old.sock": 0o600, "old.lock": 0o600} {
		info, err := os.Stat(filepath.Join(path, "understudy-"+uid(), name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestGenerations(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	startParent(t, path, "alive")
	d := openTestDir(t, path, "me")
	write := func(name string, age time.Duration) {
		t.Helper()
		file, when := filepath.Join(d.path, name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chtimes(file, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	write("dead.lock", 0)
	write("dead.sock", 0)
	write("orphan.sock", 0)
	write(".new-being", 0)
	write(".new-abandoned", 2*newGrace)
	write("somebody else's", 0)
	live, err := d.Generations()
	if err != nil || len(live) != 1 || live[0] != "alive" {
		t.Errorf("%v, %v", live, err)
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".new-being alive.lock alive.sock somebody else's" {
		t.Errorf("left: %s", got)
	}
}

func TestLookAndWatch(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	a, b := startParent(t, path, "a"), startParent(t, path, "b")
	d := openTestDir(t, path, "me")
	// One that lives and cannot be reached.
	mute, err := d.openAt("mute.lock", unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if err := onDescriptor(mute, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) }); err != nil {
		t.Fatal(err)
	}
	if err := b.server.SetReport(Report{Role: RoleDraining, Left: 4, Details: json.RawMessage(`{"x":1}`)}); err != nil {
		t.Fatal(err)
	}
	found, err := d.Look(testContext(t))
	if err != nil || len(found) != 3 {
		t.Fatalf("%+v, %v", found, err)
	}
	if r := found[0].Report; r.Role != RoleServing || r.Identity != testIdentity("a") {
		t.Errorf("%+v", found[0])
	}
	if r := found[1].Report; r.Role != RoleDraining || r.Left != 4 || string(r.Details) != `{"x":1}` {
		t.Errorf("%+v", found[1])
	}
	if found[2].ID != "mute" || !errors.Is(found[2].Err, ErrLost) {
		t.Errorf("%+v", found[2])
	}

	w, err := d.Watch(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if r := nextReport(t, w); r.Role != RoleServing {
		t.Errorf("first %+v", r)
	}
	if err := a.server.SetReport(Report{Role: RoleStandby}); err != nil {
		t.Fatal(err)
	}
	if r := nextReport(t, w); r.Role != RoleStandby {
		t.Errorf("then %+v", r)
	}
	a.stop()
	select {
	case _, open := <-w.Reports():
		if open || !errors.Is(w.Err(), ErrLost) {
			t.Errorf("at the end: %v", w.Err())
		}
	case <-time.After(patience):
		t.Fatal("the end is not told")
	}
	if err := b.server.SetReport(Report{Details: json.RawMessage(`{`)}); err == nil {
		t.Error("details that are no JSON")
	}
	if err := b.server.SetReport(Report{Details: make([]byte, maxDetails+1)}); err == nil {
		t.Error("details too large")
	}
}

// One that is pushed out before it is heard asks again: a generation that breaks off is
// not gone, one whose socket nobody reads is.
func TestPushedOutQuestion(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	p, err := openTestDir(t, path, "crowded").take()
	if err != nil {
		t.Fatal(err)
	}
	defer p.leave()
	report := encode(t, msgReport, Report{Identity: testIdentity("crowded"), Role: RoleServing}, 0)
	done := make(chan error, 1)
	go func() { done <- answerTheFourth(p.listener, report) }()
	d := openTestDir(t, path, "me")
	found, err := d.Look(testContext(t))
	if err != nil || len(found) != 1 || found[0].Err != nil || found[0].Report.Role != RoleServing {
		t.Errorf("pushed out: %+v, %v", found, err)
	}
	p.listener.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	found, err = d.Look(testContext(t))
	if err != nil || len(found) != 1 || !errors.Is(found[0].Err, errNobodyListens) {
		t.Errorf("gone: %+v, %v", found, err)
	}
}

// answerTheFourth breaks three connections off, and gives the next one the report.
func answerTheFourth(l *net.UnixListener, report []byte) error {
	for range 3 {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		c.Close()
	}
	c, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1024)); err != nil { // unread bytes would make the end an error
		return err
	}
	_, err = c.Write(report)
	return err
}

func nextReport(t *testing.T, w *Watch) Report {
	t.Helper()
	select {
	case r, ok := <-w.Reports():
		if !ok {
			t.Fatal(w.Err())
		}
		return r
	case <-time.After(patience):
		t.Fatal("no report")
	}
	return Report{}
}

// More followers than there is room for get one answer each; the first stay.
func TestManyWatchers(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	startParent(t, path, "old")
	d := openTestDir(t, path, "me")
	closed := 0
	for i := range maxWatchers + 3 {
		w, err := d.Watch(testContext(t), "old")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		nextReport(t, w)
		if i >= maxWatchers {
			if _, open := <-w.Reports(); !open {
				closed++
			}
		}
	}
	if closed != 3 {
		t.Errorf("%d were sent away, want 3", closed)
	}
	if _, err := NewServer(d, Report{Details: json.RawMessage(`x`)}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a server with a report that cannot be told")
	}
}
