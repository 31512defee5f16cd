package main

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy.mesh/tests/lab"
)

// restoreBoth is the least that a program can do for both families.
const restoreBoth = "iptables-restore --noflush /config/rules4 && ip6tables-restore --noflush /config/rules6"

// flushBoth brings both families back to nothing.
const flushBoth = "for t in raw mangle nat; do printf '*%s\\nCOMMIT\\n' $t; done >/tmp/empty && " +
	"iptables-restore /tmp/empty && ip6tables-restore /tmp/empty"

// benchIptables applies, applies again and cleans, beside a bare iptables-restore of the same rules.
func benchIptables(t lab.T, s settings) []result {
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	apply := func(t lab.T) lab.Result { return c.Iptables(t) }
	clean := func(t lab.T) lab.Result {
		return c.Run(t, lab.InitUser(), lab.AgentPath, "istio-clean-iptables")
	}
	script := func(text string) func(lab.T) lab.Result {
		return func(t lab.T) lab.Result { return c.Run(t, lab.InitUser(), "sh", "-c", text) }
	}
	timed(t, "apply", apply)
	for _, family := range []struct{ save, file string }{{"iptables-save", "rules4"}, {"ip6tables-save", "rules6"}} {
		rules := l.Pod.Run(t, family.save)
		if !strings.Contains(rules, "15001") {
			t.Fatalf("%s shows nothing of ours:\n%s", family.save, rules)
		}
		if err := os.WriteFile(filepath.Join(c.HostConfig, family.file), []byte(rules), 0o644); err != nil {
			t.Fatalf("write the rules: %v", err)
		}
	}
	timed(t, "clean", clean)
	var first, again, cleaned, bare, nothing []float64
	for range s.rounds {
		first = append(first, timed(t, "apply", apply))
		again = append(again, timed(t, "apply again", apply))
		cleaned = append(cleaned, timed(t, "clean", clean))
		bare = append(bare, timed(t, "bare restore", script(restoreBoth)))
		timed(t, "flush", script(flushBoth))
		nothing = append(nothing, timed(t, "nothing", script("true")))
	}
	const peer = "bare iptables-restore, both families"
	return []result{
		measured("iptables: apply", "ms", first).against(peer, bare),
		measured("iptables: apply again", "ms", again).against(peer, bare),
		measured("iptables: clean", "ms", cleaned).against(peer, bare),
		measured("iptables: (the harness's own share of each)", "ms", nothing),
	}
}

// timed runs a step that has to succeed and returns its milliseconds.
func timed(t lab.T, what string, step func(lab.T) lab.Result) float64 {
	begin := time.Now()
	got := step(t)
	took := milliseconds(time.Since(begin))
	if got.Code != 0 {
		t.Fatalf("%s: %v", what, got)
	}
	return took
}
