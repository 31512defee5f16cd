package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// asCrashing has the test binary panic, where its value is the termination log.
const asCrashing = "UNDERSTUDY_TEST_CRASH"

func TestMain(m *testing.M) {
	if path, crash := os.LookupEnv(asCrashing); crash {
		e := &Env{TerminationLog: path}
		e.Explain("something before")
		if err := e.ExplainCrash(); err != nil {
			panic(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			panic("of a goroutine")
		}()
		<-done
	}
	os.Exit(m.Run())
}

func TestExplain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	for _, tc := range []struct{ why, reason, want string }{
		{"a reason", "the port is taken", "the port is taken"},
		{"a shorter one replaces it", "no", "no"},
		{"several lines", "one\ntwo:\t\x1b[31mthree\n", "one two: [31mthree"},
		{"too long", strings.Repeat("a", 5000), strings.Repeat("a", 4096)},
		{"too long, and cut within a letter", "a" + strings.Repeat("é", 2048), ""},
		{"taken back", "", ""},
	} {
		if err := os.WriteFile(path, nil, 0o666); tc.why == "a reason" && err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		(&Env{TerminationLog: path, Stderr: &errs}).Explain(tc.reason)
		got, err := os.ReadFile(path)
		if tc.why == "too long, and cut within a letter" {
			tc.want = strings.ToValidUTF8(tc.reason[:4096], "")
		}
		if err != nil || errs.Len() > 0 || string(got) != tc.want {
			t.Errorf("%s: %q, %v, %q; want %q", tc.why, got, err, &errs, tc.want)
		}
	}
}

// TestExplainMakesNothing where there is no file of the kubelet's, and says so where that file cannot be written.
func TestExplainMakesNothing(t *testing.T) {
	dir := t.TempDir()
	var errs bytes.Buffer
	for _, path := range []string{"", filepath.Join(dir, "none"), dir, "/dev/null"} {
		e := &Env{TerminationLog: path, Stderr: &errs}
		e.Explain("a reason")
		if err := e.ExplainCrash(); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 || errs.Len() > 0 {
		t.Errorf("%v, %v, %q", entries, err, &errs)
	}
	(&Env{TerminationLog: "/proc/version", Stderr: &errs}).Explain("a reason")
	if !strings.Contains(errs.String(), "warning: the container's status will not say why it ended: write /proc/version: ") {
		t.Errorf("a file that cannot be written: %q", &errs)
	}
}

func TestExplainCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asCrashing+"="+path)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "panic: of a goroutine") {
		t.Errorf("%v: %s", err, out)
	}
	got, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(got), "something before") || !strings.Contains(string(got), "panic: of a goroutine") {
		t.Errorf("%v: %q", err, got)
	}
}
