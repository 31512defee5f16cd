package upstream

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"understudy.mesh/tests/dnstest"
)

func TestParseResolvConf(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want resolvConf
	}{
		"empty": {"", resolvConf{Attempts: 2}},
		"a pod's": {"search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
			resolvConf{Servers: servers("10.96.0.10:53"), Search: dnstest.Search, Attempts: 2}},
		"all options": {"nameserver 10.0.0.1\nnameserver fd00::1\nnameserver fe80::1%eth0\nnameserver [127.0.0.1]:5353\noptions timeout:3 attempts:4 rotate use-vc",
			resolvConf{Servers: servers("10.0.0.1:53", "[fd00::1]:53", "[fe80::1%eth0]:53", "127.0.0.1:5353"), Timeout: 3 * time.Second, Attempts: 4, Rotate: true, TCP: true}},
		"more than three servers": {"nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\nnameserver 1.1.1.1",
			resolvConf{Servers: servers("1.1.1.1:53", "2.2.2.2:53", "3.3.3.3:53", "4.4.4.4:53"), Attempts: 2}},
		"the last search wins": {"domain a.example\nsearch B.example. b.example c\n", resolvConf{Search: []string{"b.example", "c"}, Attempts: 2}},
		"comments and dirt":    {"# nameserver 1.1.1.1\n; x\nnameserver\nnameserver x\nnameserver [::1]:0\nnameserver [::1]:99999\nnameserver 1.1.1.1:53\n\toptions timeout:x attempts:-1 timeout:\n\x00\xff\n", resolvConf{Attempts: 2}},
		"caps":                 {"options timeout:99999999999 attempts:9\noptions timeout:900", resolvConf{Timeout: 30 * time.Second, Attempts: 5}},
	} {
		t.Run(name, func(t *testing.T) {
			same := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if diff := cmp.Diff(tc.want, parseResolvConf([]byte(tc.text)), same, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func servers(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestReadResolvConfErrors(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", dir, fifo, filepath.Join(dir, "missing")} {
		if c, err := readResolvConf(path); err == nil {
			t.Errorf("%q is read: %+v", path, c)
		}
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte("nameserver 1.1.1.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 100<<20); err != nil {
		t.Fatal(err)
	}
	if c, err := readResolvConf(big); err != nil || len(c.Servers) != 1 {
		t.Errorf("100 MB file: %+v, %v", c, err)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("search a b\nnameserver 10.0.0.1\nnameserver [::1]:5353\noptions timeout:3 attempts:4 rotate use-vc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := parseResolvConf(data)
		for _, s := range c.Servers {
			if !s.IsValid() || s.Port() == 0 {
				t.Fatalf("server %s", s)
			}
		}
		if c.Attempts < 1 || c.Attempts > maxAttempts || c.Timeout < 0 || c.Timeout > maxTimeout {
			t.Fatalf("%+v", c)
		}
	})
}
