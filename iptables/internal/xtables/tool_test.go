package xtables

import (
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	for _, tt := range []struct{ stderr, want string }{
		{"iptables-restore: line 2 failed\n", `(line 2 is "-A OUTPUT -j X")`},
		{"iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)\n", "load nf_tables"},
		{"iptables: No chain/target/match by that name.\n", "xt_REDIRECT"},
		{"Warning: Extension owner is not supported, missing kernel module?\niptables-restore v1.8.9 (nf_tables): line 5: RULE_APPEND failed (No such file or directory): rule in chain OUTPUT\n", "xt_owner"},
		{"Fatal: can't open lock file /run/xtables.lock: Read-only file system\n", "XTABLES_LOCKFILE"},
		{"Another app is currently holding the xtables lock; still 0s 0us time ahead\n", "another program is changing"},
		{"iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)\n", "NET_ADMIN and NET_RAW"},
		{"Failed to initialize nft: Protocol not supported\n", "--force-iptables-binary=legacy"},
	} {
		err := explain("iptables-restore", errTest, tt.stderr, []byte("*nat\n-A OUTPUT -j X\nCOMMIT\n"))
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, want one line with %q", tt.stderr, err, tt.want)
		}
	}
}

type testError string

func (e testError) Error() string { return string(e) }

const errTest = testError("exit status 1")
