package envoy

import (
	"os/exec"
	"testing"
	"time"
)

func TestMainThread(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell")
	}
	busy, err := startProcess(Command{Path: "/bin/sh", Args: []string{"-c", "while :; do :; done"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { busy.kill(); <-busy.Done() }()
	first, err := busy.mainThread()
	for deadline := time.Now().Add(patience); err == nil; {
		now, nowErr := busy.mainThread()
		if err = nowErr; now.time > first.time && now.runnable {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a busy shell is %+v, was %+v", now, first)
		}
		time.Sleep(clockTick)
	}
	if err != nil {
		t.Error(err)
	}
	idle, err := startProcess(Command{Path: "/bin/true"})
	if err != nil {
		t.Fatal(err)
	}
	<-idle.Done()
	if _, err := idle.mainThread(); err == nil {
		t.Error("a process that has ended has a main thread")
	}
}

func TestParseThread(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15\n"
	for text, want := range map[string]time.Duration{
		"42 (envoy)" + rest: 2 * time.Second, "42 (a) b (c)" + rest: 2 * time.Second,
		"": -1, "42 (envoy) S 1 2": -1, "42 (envoy) S 1 2 3 4 5 6 7 8 9 10 x y": -1,
	} {
		got, err := parseThread([]byte(text))
		if (err != nil) != (want < 0) || err == nil && (got.time != want || got.runnable) {
			t.Errorf("%q: %+v, %v; want %v", text, got, err, want)
		}
	}
}
