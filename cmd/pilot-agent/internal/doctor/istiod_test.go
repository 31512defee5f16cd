package doctor

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"understudy.mesh/pkg/istiod"
)

func TestIstiodReport(t *testing.T) {
	good := istiod.Finding{Check: "tls", State: istiod.StateOK, Detail: "TLS 1.3"}
	warned := istiod.Finding{Check: "token", State: istiod.StateWarning, Detail: "for\n\x1b[1mothers"}
	bad := istiod.Finding{Check: "stream", State: istiod.StateFailed, Detail: "refused"}
	for _, tc := range []struct {
		findings []istiod.Finding
		json     bool
		want     string
		fails    bool
	}{
		{[]istiod.Finding{good, warned}, false, "CHECK  STATE    DETAIL\ntls    ok       TLS 1.3\ntoken  warning  for [1mothers\n", false},
		{[]istiod.Finding{good, bad}, false, "CHECK   STATE   DETAIL\ntls     ok      TLS 1.3\nstream  failed  refused\n", true},
		{[]istiod.Finding{bad}, true, "{\n  \"right\": false,\n  \"findings\": [\n    {\n      \"check\": \"stream\",\n      \"state\": \"failed\",\n      \"detail\": \"refused\"\n    }\n  ]\n}\n", true},
	} {
		var out bytes.Buffer
		err := newIstiodReport(tc.findings).write(&out, tc.json)
		if errors.Is(err, errIstiod) != tc.fails || out.String() != tc.want {
			t.Errorf("%v:\n%s\nwant %v:\n%s", err, out.String(), tc.fails, tc.want)
		}
	}
}

// TestIstiodCommand: with files there is nothing to try, and an unknown form of output is a wrong command line.
func TestIstiodCommand(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"doctor", "istiod", "--output", "xml"}, 2, `flag --output: "xml"`},
		{[]string{"doctor", "istiod", "--configDir", "/etc"}, 2, "has its configuration from files"},
	} {
		if status, _, stderr := doctorIn(t, tc.args...); status != tc.status || !strings.Contains(stderr, tc.want) {
			t.Errorf("%q: status %d, %s; want %d and %q", tc.args, status, stderr, tc.status, tc.want)
		}
	}
}
