package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy.mesh/tests/lab"
)

// What users with large lists have; the limits are those that the agent keeps.
const (
	manyCIDRs = 5000
	manyPorts = 200
)

// manySteps are what is done with the large configuration, with the limit of each in
// milliseconds, and what iptables alone does of it.
var manySteps = []struct {
	what, peer string
	limit      float64
}{
	{"first apply", "bare restore of the same rules", 150},
	{"same again", "bare save", 100},
	{"one CIDR less", "bare save", 150},
	{"clean", "bare save", 150},
}

// manyBackend is a back end, and what the programs of others do of the same.
type manyBackend struct {
	name                 string
	flags                []string            // that force it
	read                 map[string][]string // by the name of a file: what prints the rules that it takes
	restore, save, flush string              // for sh
}

func iptablesBackend(kind string) manyBackend {
	of := func(text string) string { return strings.ReplaceAll(text, "tables-", "tables-"+kind+"-") }
	return manyBackend{
		name: "iptables-" + kind, flags: []string{"--force-iptables-binary", kind},
		read:    map[string][]string{"rules4": {of("iptables-save")}, "rules6": {of("ip6tables-save")}},
		restore: of(restoreBoth), save: of("iptables-save >/dev/null && ip6tables-save >/dev/null"), flush: of(flushBoth),
	}
}

var nativeBackend = manyBackend{
	name: "nftables", flags: []string{"--native-nftables"},
	read:    map[string][]string{"rules": {"nft", "list", "ruleset"}},
	restore: "nft -f /config/rules", save: "nft list ruleset >/dev/null", flush: "nft flush ruleset",
}

// benchIptablesMany measures each back end with thousands of CIDRs and hundreds of ports.
func benchIptablesMany(t lab.T, s settings) []result {
	var results []result
	for _, backend := range []manyBackend{iptablesBackend("legacy"), iptablesBackend("nft"), nativeBackend} {
		results = append(results, benchBackend(t, s, backend)...)
	}
	return append(results, benchIptablesThrottled(t, s))
}

func benchBackend(t lab.T, s settings, backend manyBackend) (results []result) {
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	apply := func(cidrs []string) float64 {
		return timed(t, "apply", func(t lab.T) lab.Result {
			lists := []string{"-x", strings.Join(cidrs, ","), "-d", strings.Join(ports(manyPorts), ",")}
			return c.Iptables(t, append(lists, backend.flags...)...)
		})
	}
	clean := func() float64 {
		return timed(t, "clean", func(t lab.T) lab.Result {
			return c.Run(t, lab.InitUser(), lab.AgentPath, "istio-clean-iptables")
		})
	}
	script := func(text string) float64 {
		return timed(t, text, func(t lab.T) lab.Result { return c.Run(t, lab.InitUser(), "sh", "-c", text) })
	}
	all := cidrs(manyCIDRs)
	less := append(append([]string{}, all[:manyCIDRs/2]...), all[manyCIDRs/2+1:]...)
	apply(all)
	for file, command := range backend.read {
		rules := l.Pod.Run(t, command...)
		if err := os.WriteFile(filepath.Join(c.HostConfig, file), []byte(rules), 0o644); err != nil {
			t.Fatalf("write the rules: %v", err)
		}
	}
	clean()
	took, peer, nothing := make([][]float64, len(manySteps)), make([][]float64, len(manySteps)), []float64(nil)
	for range s.rounds {
		for i, step := range []func() float64{func() float64 { return apply(all) }, func() float64 { return apply(all) }, func() float64 { return apply(less) }, clean} {
			took[i] = append(took[i], step())
		}
		peer[0] = append(peer[0], script(backend.restore))
		saved := script(backend.save)
		for i := 1; i < len(peer); i++ {
			peer[i] = append(peer[i], saved)
		}
		script(backend.flush)
		nothing = append(nothing, script("true"))
	}
	for i, step := range manySteps {
		what := fmt.Sprintf("%s, %d CIDRs, %d ports: %s (limit %.0f)", backend.name, manyCIDRs, manyPorts, step.what, step.limit)
		results = append(results, measured(what, "ms", took[i]).against(step.peer, peer[i]))
	}
	return append(results, measured(backend.name+": (the harness's own share of each)", "ms", nothing))
}

// benchIptablesThrottled applies the rules of an ordinary pod on a tenth of a core, the
// harness included: nsenter and setpriv.
func benchIptablesThrottled(t lab.T, s settings) result {
	const limit = 1500 // ms
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	procs, err := lab.CPULimit(t, 10)
	if err != nil {
		t.Fatalf("a tenth of a core: %v", err)
	}
	var took []float64
	for range s.rounds {
		took = append(took, timed(t, "apply on a tenth of a core", func(t lab.T) lab.Result {
			ctx, cancel := context.WithTimeout(context.Background(), lab.Deadline)
			defer cancel()
			agent := c.Command(ctx, lab.InitUser(), lab.AgentPath, "istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020")
			cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, procs}, agent.Args...)...)
			cmd.Env = append(agent.Env, "PATH="+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatalf("start istio-iptables: %v", err)
			}
			return lab.Result{Code: cmd.ProcessState.ExitCode(), Stdout: string(out)}
		}))
		timed(t, "clean", func(t lab.T) lab.Result {
			return c.Run(t, lab.InitUser(), lab.AgentPath, "istio-clean-iptables")
		})
	}
	return measured("iptables: apply on 10 % of a core", "ms", took).against("limit", []float64{limit})
}

func cidrs(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("172.%d.%d.0/24", i>>7, i<<1&0xff))
	}
	return out
}

func ports(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(20000+i))
	}
	return out
}
