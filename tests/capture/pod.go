package capture

import (
	"crypto/rand"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// NeedRoot skips a test that programs the kernel, but not where everything must run.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: network namespaces and iptables")
}

// Namespace makes a named network namespace with lo up, enters it on this
// goroutine's thread and removes it when the test ends.
func Namespace(t *testing.T, suffix string) string {
	t.Helper()
	name := "ipt-" + strings.ToLower(rand.Text()[:8]) + suffix
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	t.Cleanup(func() { netns.DeleteNamed(name) })
	up(t, "lo")
	// A refused datagram is told to its sender always, or each one would be waited for.
	Sh(t, "sysctl -qw net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0 net.ipv6.icmp.ratemask=")
	return name
}

func up(t *testing.T, iface string) {
	t.Helper()
	link, err := netlink.LinkByName(iface)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// NewPod enters a namespace with lo only. The thread ends with the test's goroutine.
func NewPod(t *testing.T) {
	t.Helper()
	NeedRoot(t)
	runtime.LockOSThread()
	Namespace(t, "")
}

func Sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func Quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// NFT gives nft some commands and returns what it prints.
func NFT(t *testing.T, text string) string {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", text, err, out)
	}
	return string(out)
}
