package cli

import (
	"strings"
	"testing"
)

func TestHandoffDirs(t *testing.T) {
	for _, tc := range []struct {
		environ []string
		want    string
	}{
		{nil, "/etc/asm/uds"},
		{[]string{"A=b", "UNDERSTUDY_HANDOFF_DIR=/run/uds"}, "/etc/asm/uds /run/uds"},
		{[]string{"UNDERSTUDY_HANDOFF_DIR="}, "/etc/asm/uds"},
	} {
		if got := strings.Join((&Env{Environ: tc.environ}).handoffDirs(), " "); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.environ, got, tc.want)
		}
	}
}
