package mesh

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTooMuch: with too many hosts, or files too large together, the last good state stays, and the reason is told; at the
// start there is none.
func TestTooMuch(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		bound      func(*Options)
	}{
		{"hosts", "the documents have 3 hosts, at most 2 are taken: remove some, or raise UNDERSTUDY_MAX_HOSTS", func(o *Options) { o.MaxHosts = 2 }},
		{"bytes", "its 2 files have", func(o *Options) { o.maxBytes = int64(3 * len(host("a")) / 2) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := testOptions()
			tc.bound(&o)
			dir := writeFiles(t, map[string]string{"a.yaml": host("a")})
			s, log := newTestSource(t, dir, o)
			if _, err := s.Load(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(dir, "b.yaml"), host("b")+host("c"))
			if next, _ := s.rescan(); next != nil {
				t.Errorf("%d hosts were taken", len(next.Services()))
			}
			if r := s.Report(); !strings.Contains(r.Problem, tc.want) || r.Services != 1 {
				t.Errorf("%d services, problem %q, want %q", r.Services, r.Problem, tc.want)
			}
			if !strings.Contains(log.String(), tc.want) {
				t.Errorf("the log says %q", log)
			}
			again, _ := newTestSource(t, dir, o)
			if _, err := again.Load(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("at the start: %v", err)
			}
			if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
				t.Fatal(err)
			}
			if _, _ = s.rescan(); s.Report().Problem != "" {
				t.Errorf("when there is less: %q", s.Report().Problem)
			}
		})
	}
}

func host(name string) string {
	return doc("name: "+name, "hosts: ["+name+".x], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS")
}
