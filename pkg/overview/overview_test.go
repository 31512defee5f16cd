package overview

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/golden"
)

var seenAt = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

func before(d time.Duration) time.Time { return seenAt.Add(-d) }

// afterUpgrade is a pod whose last upgrade succeeded, with a configuration of files of which not all is in force.
func afterUpgrade() Overview {
	begun := before(5*time.Minute + 13*time.Second)
	step := func(after time.Duration, what string) contract.Step {
		return contract.Step{At: begun.Add(after), What: what}
	}
	return Overview{
		Pod: "shop-7f9c-x2x.default",
		Upgrade: contract.UpgradeStatus{HandoffDir: "/etc/asm/uds", Generations: []contract.GenerationStatus{
			{ID: "3k9f2a", Self: true, Role: "serving", Since: before(5*time.Minute + 10*time.Second), AgentVersion: "1.5.0", EnvoyVersion: "1.40.0",
				LastAttempt: &contract.Attempt{At: begun, With: "1ab2cd", TakingOver: true, Result: "success", Seconds: 2.9, Steps: []contract.Step{
					step(0, "asked generation 1ab2cd to hand over, because it is older"), step(4*time.Millisecond, "got 12 sockets and 3456 bytes of state"),
					step(812*time.Millisecond, "the configuration is in force, and Envoy accepts"), step(2900*time.Millisecond, "success"),
				}}},
			{ID: "1ab2cd", Role: "draining", Since: before(5*time.Minute + 12*time.Second), AgentVersion: "1.4.0", EnvoyVersion: "1.39.3",
				Connections: 12, Drain: &contract.Drain{Idle: 1, Active: 2, Streams: 3, TCP: 6}},
		}},
		Sidecar: &Sidecar{
			Ready: true, Tasks: []Task{{"config", "done", ""}, {"dns", "done", ""}, {"envoy", "done", ""}},
			Capture: "TCP that leaves the pod goes to Envoy at port 15001.",
			Config:  Config{Directory: "/etc/understudy/mesh", Hosts: 3, Errors: []Error{{"db.yaml: document 2 (line 12)", `spec.ports[0].number: 70000 is no port`}}, ErrorsCount: 1},
			DNS: &DNS{
				Queries: 123456, NamesCount: 102, VIPsUsed: 1, Names: []Name{
					{"db.example", []netip.Addr{netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("2001:2::1")}, true, "3306 -> 10.1.2.3:3306, 10.1.2.4:3306 (STATIC)"},
					{"many.example", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.4")}, false, ""},
				},
				Servers: []upstream.Stats{
					{Server: netip.MustParseAddrPort("10.96.0.10:53"), State: "healthy", InUse: true, Requests: 1000, Failures: 2, RTT: 1234567, Error: "i/o timeout", ErrorAt: before(time.Hour)},
					{Server: netip.MustParseAddrPort("10.96.0.11:53"), State: "failing", InUse: true, Requests: 10, Failures: 10},
					{Server: netip.MustParseAddrPort("10.9.9.9:53"), State: "healthy"},
				},
			},
		},
	}
}

// underIstiod is a pod whose istiod is away, and whose certificate is about to end.
func underIstiod() Overview {
	return Overview{
		Pod:     "web-0.prod",
		Upgrade: contract.UpgradeStatus{Off: "no hand-off directory", Generations: []contract.GenerationStatus{{ID: "aa", Self: true, Role: "serving", Since: before(50 * time.Hour), AgentVersion: "1.5.0", EnvoyVersion: "1.40.0"}}},
		Sidecar: &Sidecar{
			Tasks: []Task{{"envoy", "waiting", "Envoy is starting"}, {"config", "done", ""}}, Capture: "Nothing is captured.",
			Config: Config{Istiod: &Stream{Address: "istiod.istio-system.svc:15012", Since: before(7 * time.Minute), LastError: "connection refused"},
				Errors: []Error{{"Cluster outbound|80||x", "no such extension"}}, ErrorsCount: 25},
			Certificate: &Certificate{ID: "spiffe://cluster.local/ns/prod/sa/web", State: "valid", Since: before(23 * time.Hour), NotAfter: seenAt.Add(time.Hour), LastError: "no CA"},
			DNS: &DNS{NamesCount: 2, Names: []Name{
				{Host: "web.shop.svc.cluster.local", Addresses: []netip.Addr{netip.MustParseAddr("10.96.3.4")}, LeadsTo: "80 -> outbound|80||web.shop.svc.cluster.local"},
				{Host: "web-0.web.shop.svc.cluster.local", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}},
			}},
		},
	}
}

// standby is what there is in a container whose generation does not serve.
func standby() Overview {
	return Overview{Pod: "web-0.prod", Upgrade: contract.UpgradeStatus{HandoffDir: "/d", Generations: []contract.GenerationStatus{
		{ID: "bb", Self: true, Role: "standby", Since: before(time.Minute)}, {ID: "cc", Error: "it did not answer within 2s"},
	}}}
}

func cases() map[string]Overview {
	return map[string]Overview{"upgraded": afterUpgrade(), "istiod": underIstiod(), "standby": standby(), "empty": {}}
}

func TestGoldens(t *testing.T) {
	for name, o := range cases() {
		t.Run(name, func(t *testing.T) {
			golden.Check(t, filepath.Join("testdata", name+".html"), htmlOf(t, o))
			var text strings.Builder
			if err := o.WriteText(&text, seenAt); err != nil {
				t.Fatal(err)
			}
			golden.Check(t, filepath.Join("testdata", name+".txt"), text.String())
		})
	}
}

// TestW3M: the page is readable where there is no other browser than that of a terminal.
func TestW3M(t *testing.T) {
	if _, err := exec.LookPath("w3m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs w3m: build/setup.sh test")
		}
		t.Skip("needs w3m")
	}
	for name, o := range cases() {
		cmd := exec.CommandContext(t.Context(), "w3m", "-dump", "-T", "text/html", "-cols", "150", "-O", "UTF-8", "-I", "UTF-8")
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8")
		cmd.Stdin = strings.NewReader(htmlOf(t, o))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, filepath.Join("testdata", name+".w3m"), string(out))
	}
}

func htmlOf(t testing.TB, o Overview) string {
	t.Helper()
	var b strings.Builder
	if err := o.WriteHTML(&b, seenAt); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// hostile has markup, quotes, control characters and what is no UTF-8 in every text that comes from outside.
const hostile = "<script>alert(1)</script>\"'&amp;`--><img src=x onerror=y>\x1b[31m\u202e\r\n\x00\xff"

func attacked(text string) Overview {
	return Overview{
		Pod: text,
		Upgrade: contract.UpgradeStatus{HandoffDir: text, Off: text, Generations: []contract.GenerationStatus{
			{ID: text, Self: true, Role: text, AgentVersion: text, EnvoyVersion: text,
				LastAttempt: &contract.Attempt{At: seenAt, With: text, Result: text, Reason: text, Steps: []contract.Step{{At: seenAt, What: text}}}},
			{ID: text, Error: text},
		}},
		Sidecar: &Sidecar{
			Tasks: []Task{{text, text, text}}, Capture: text,
			Config:      Config{Directory: text, Istiod: &Stream{Address: text, LastError: text}, Errors: []Error{{text, text}}, ErrorsCount: 1},
			Certificate: &Certificate{ID: text, State: text, LastError: text},
			DNS:         &DNS{Names: []Name{{Host: text, LeadsTo: text}}, Servers: []upstream.Stats{{State: text, Error: text, InUse: true}}},
		},
	}
}

// TestHostileText: whatever a name or an error contains, the page has the tags of a harmless one, and the terminal gets no
// control characters.
func TestHostileText(t *testing.T) { checkEscaped(t, hostile) }

func FuzzHostileText(f *testing.F) {
	f.Add(hostile)
	f.Add("</title></style><svg/onload=alert(1)>")
	f.Fuzz(func(t *testing.T, text string) { checkEscaped(t, text) })
}

func checkEscaped(t *testing.T, text string) {
	t.Helper()
	harmless, got := htmlOf(t, attacked("x")), htmlOf(t, attacked(text))
	tags := func(p string) int { return strings.Count(p, "<") }
	// Cells that are empty and texts that lead to none change nothing: each element is there whatever is in it, but for what
	// is left out where there is no text.
	if text != "" && tags(got) != tags(harmless) {
		t.Errorf("%d tags, want %d:\n%s", tags(got), tags(harmless), got)
	}
	for _, c := range got {
		if c < ' ' && c != '\n' || c == '\u202e' {
			t.Fatalf("control character %q in the page", c)
		}
	}
	var b strings.Builder
	if err := attacked(text).WriteText(&b, seenAt); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.String() {
		if c < ' ' && c != '\n' || c == 0x7f || c == '\u202e' {
			t.Fatalf("control character %q for the terminal", c)
		}
	}
	var plain strings.Builder
	_ = attacked("x").WriteText(&plain, seenAt)
	if text != "" && strings.Count(b.String(), "\n") != strings.Count(plain.String(), "\n") {
		t.Errorf("a text breaks lines:\n%s", b.String())
	}
}

// TestBounds: what is listed fits on a screen, whatever there is.
func TestBounds(t *testing.T) {
	var c Config
	for range 1000 {
		c.Add("a", "b")
	}
	if len(c.Errors) != maxErrors || c.ErrorsCount != 1000 {
		t.Errorf("%d of %d", len(c.Errors), c.ErrorsCount)
	}
}
