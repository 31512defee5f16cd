package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// toldWithin is how long a newcomer that can never take over may take to say so: five lives of its Envoy, on a machine that
// runs other tests. A hook that waits for its time-out takes longer.
const toldWithin = 60 * time.Second

// otherMachine begins as a program for an s390, which runs no tests.
const otherMachine = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16\x00\x01\x00\x00\x00"

// withoutHotRestart is an Envoy as it is where it was built without: it takes the flags, ignores them, and serves.
const withoutHotRestart = `#!/bin/sh
[ "$1" = --hot-restart-version ] && { echo disabled >&2; exit; }
for a; do
	shift
	case $a in --restart-epoch|--base-id|--socket-path|--socket-mode|--parent-shutdown-time-s) skip=1; continue;; --skip-hot-restart-*) continue;; esac
	[ -n "$skip" ] || set -- "$@" "$a"
	skip=
done
exec ` + envoyReal + ` "$@" --disable-hot-restart
`

// TestHopelessNewcomers upgrades to images whose Envoy can never take over. Their agent ends with the reason, which is then
// the message of its container's last state; the generation before serves all the time; and the next image is upgraded to.
func TestHopelessNewcomers(t *testing.T) {
	for _, tc := range []struct{ name, content, reason string }{
		{"missing", "", "binaryPath /usr/local/bin/envoy: no such file or directory: install Envoy there"},
		{"a text", "no program\n", "cannot take over from .*: exec format error \\(it is not a program for this machine"},
		{"of another architecture", otherMachine, "cannot take over from .*: exec format error \\(it is not a program for this machine"},
		{"without hot restart", withoutHotRestart, "cannot take over from .*: this Envoy takes no part in hot restarts: .*is hot restart compiled in"},
		{"that dies", "#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && echo 11.104 && exit\nexit 3\n", "cannot take over from .*: Envoy ended 5 times before it ever served"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
			load := startLoadAt(t, p, lab.PodIP)
			image := lab.Image{Name: "proxy:bad", Agent: p.newer.Agent}
			if tc.content != "" {
				image.Envoy = filepath.Join(p.Dir, "bad-envoy")
				image.Files = map[string]string{envoyReal: p.newer.Envoy}
				must(t, os.WriteFile(image.Envoy, []byte(tc.content), 0o755))
			}
			begin := time.Now()
			p.kruise.Upgrade(image)
			p.kubelet.Log.WaitFor(t, "istio-proxy-2: Started: proxy:bad")
			p.kubelet.Log.WaitFor(t, "istio-proxy-2: Ended: proxy:bad, exit status 1: .*"+tc.reason)
			p.kubelet.Log.WaitFor(t, "istio-proxy-2: FailedPostStartHook")
			if took := time.Since(begin); took > toldWithin {
				t.Errorf("it took %v to say why", took)
			}
			p.kubelet.Log.WaitFor(t, "(?s)(istio-proxy-2: Ended: proxy:bad, exit status 1.*){2}") // started again, it ends again
			p.leavesService(t)
			p.waitRole(t, 0, roleServing)
			if message := p.slot(1).Agent().Message(); strings.Contains(message, "\n") || len(message) > 4096 {
				t.Errorf("the message is no line: %q", message)
			}
			if err := contains(p.kubelet.Log.String(), "istio-proxy-1: Killing"); err == nil {
				t.Error("the slot that serves was emptied")
			}
			p.kruise.Upgrade(p.newer)
			p.kruise.WaitUpgraded(t)
			p.mustServe(t, 1, p.newer)
			load.check(t)
		})
	}
}

// TestNewcomerThatStumbles: an Envoy that dies twice and then serves takes over.
func TestNewcomerThatStumbles(t *testing.T) {
	t.Parallel()
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: manualWait})
	load := startLoad(t, p)
	const deaths = "/var/lib/istio/data/deaths"
	image := p.scripted(t, "proxy:stumbles", fmt.Sprintf("[ $(cat %[1]s 2>/dev/null | wc -l) -ge 2 ] || { echo died >>%[1]s; exit 3; }\nexec %[2]s \"$@\"\n", deaths, envoyReal))
	p.kruise.Upgrade(image)
	p.kruise.WaitUpgraded(t)
	p.waitRole(t, 1, roleServing)
	if died := p.slot(1).Run(t, "cat", deaths); strings.Count(died.Stdout, "died") != 2 {
		t.Errorf("its Envoy has died otherwise: %v", died)
	}
	if err := contains(p.kubelet.Log.String(), "istio-proxy-2: Ended: proxy:stumbles"); err == nil {
		t.Error("its agent ended")
	}
	load.check(t)
}

// TestFailedWaitExplains: an upgrade that may still succeed is waited for, and then the hook's reason is the message of the
// container's last state.
func TestFailedWaitExplains(t *testing.T) {
	t.Parallel()
	hook := []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait --timeoutSeconds 4"}
	p := newKruisePod(t, lab.SlotsOptions{}, lab.KubeletOptions{PostStart: hook})
	load := startLoadAt(t, p, lab.PodIP)
	p.kruise.Upgrade(p.scripted(t, "proxy:hangs", "exec sleep infinity\n"))
	p.kubelet.Log.WaitFor(t, "istio-proxy-2: FailedPostStartHook after ([4-9]|[1-9][0-9]+)[.]")
	p.kubelet.Log.WaitFor(t, "istio-proxy-2: Ended: proxy:hangs, exit status 1: stopped before this agent was ever ready: `wait` failed: timeout waiting for Envoy proxy to become ready[.] "+
		"Last error: the agent is starting: .*envoy: ")
	p.kruise.Upgrade(p.newer)
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	load.check(t)
}
