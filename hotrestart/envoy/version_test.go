package envoy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadVersion(t *testing.T) {
	for name, tc := range map[string]struct {
		script, fails string
		want          Version
	}{
		"as Envoy does":      {script: `test "$*" = --hot-restart-version && echo 11.104 >&2`, want: Version{11, 104}},
		"on stdout":          {script: `echo 12.96`, want: Version{12, 96}},
		"behind a warning":   {script: `echo "warning: 1.2.3"; echo 11.104`, want: Version{11, 104}},
		"disabled":           {script: `echo disabled >&2`, fails: "hot restart compiled in"},
		"nothing":            {script: `:`, fails: "11.104"},
		"one number":         {script: `echo 11`, fails: "11.104"},
		"negative":           {script: `echo -1.104`, fails: "11.104"},
		"too much output":    {script: `head -c 1000000 /dev/zero; echo 11.104`, fails: "11.104"},
		"a failing binary":   {script: `echo 11.104; exit 3`, fails: "exit status 3"},
		"far too large":      {script: `echo 11.99999999999999999999999`, fails: "11.104"},
		"three numbers":      {script: `echo 11.104.1`, fails: "11.104"},
		"its child lives on": {script: `sleep 60 & echo 11.104; exec kill -9 $$`, fails: "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadVersion(t.Context(), script(t, tc.script))
			if tc.fails == "" && (err != nil || got != tc.want) {
				t.Errorf("%v, %v, want %v", got, err, tc.want)
			}
			if tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)) {
				t.Errorf("%v, %v, want an error with %q", got, err, tc.fails)
			}
		})
	}
}

func TestReadVersionOfHangingBinary(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ReadVersion(ctx, script(t, "exec sleep 600")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the time is over", err)
	}
}

func TestVersionCheck(t *testing.T) {
	for v, ok := range map[Version]bool{
		{11, 104}: true, {11, 16}: true, {11, 15}: false, {11, 1 << 17}: false, {10, 104}: false, {12, 104}: false, {}: false,
	} {
		if err := v.Check(); (err == nil) != ok {
			t.Errorf("%v: %v, want ok %v", v, err, ok)
		}
	}
}
