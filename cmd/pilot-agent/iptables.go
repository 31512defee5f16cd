package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/logging"
)

// resolvConfPath names the pod's nameservers: resolv.conf(5).
const resolvConfPath = "/etc/resolv.conf"

func newIptablesCommand(e *cli.Env) *cobra.Command {
	return newCaptureCommand(e, thisHost(), &cobra.Command{
		Use:   "istio-iptables",
		Short: "Make the pod's traffic go through the proxy, by iptables rules in this network namespace",
		Long: "Programs the rules that send the pod's traffic to the proxy and its DNS to the agent, from whatever\n" +
			"is there: nothing, an earlier configuration, Istio's own rules. Running it again changes nothing.\n" +
			"Every flag can be given as the environment variable beside it; the flag wins. A value \"@FILE\" is read from\n" +
			"that file, one item a line or between commas: the kernel refuses longer arguments than 128 KiB.",
	})
}

func newCleanIptablesCommand(e *cli.Env) *cobra.Command {
	cmd := newCaptureCommand(e, thisHost(), &cobra.Command{
		Use:   "istio-clean-iptables",
		Short: "Remove everything that istio-iptables has made, whatever its flags were",
	})
	cleanup := cmd.Flags().Lookup(cleanupFlag)
	cleanup.DefValue = "true"
	if err := cleanup.Value.Set("true"); err != nil {
		panic(err) // a boolean takes "true"
	}
	return cmd
}

// shortLife is the garbage collector's percentage for a process that lives for a tenth
// of a second: with 5,000 CIDRs its usual 100 takes a quarter of that.
const shortLife = 400

// newCaptureCommand gives cmd the flags of captureSettings and the work behind them.
func newCaptureCommand(e *cli.Env, host captureHost, cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.Flags().SortFlags = false
	for _, s := range captureSettings() {
		s.register(cmd.Flags())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defer debug.SetGCPercent(debug.SetGCPercent(shortLife))
		o, err := parseCapture(cmd.Flags(), e.Environ, host)
		if err != nil {
			return captureUsage(err)
		}
		log, err := e.Log(cmd)
		if err != nil {
			return err
		}
		log = logging.For(log, "iptables")
		for _, what := range o.ineffective {
			log.Warn(what)
		}
		return o.run(cmd.Context(), e.Stdout, log)
	}
	return cmd
}

// exitValidation is Istio's exit status for rules that are not in force.
const exitValidation = 126

// captureUsage blames the command line for what is wrong with it, and not for what is
// not supported.
func captureUsage(err error) error {
	var unsupported *unsupportedError
	if errors.As(err, &unsupported) {
		return err
	}
	return &cli.UsageError{Err: err}
}

func (o *captureOptions) run(ctx context.Context, stdout io.Writer, log *slog.Logger) error {
	if o.namespace != "" {
		leave, err := enterNamespace(o.namespace)
		if err != nil {
			return err
		}
		defer leave()
	}
	if o.cniMode { // the node's lock is for the node's own rules: Istio's way, too
		if err := os.Setenv("XTABLES_LOCKFILE", o.namespace); err != nil {
			return fmt.Errorf("name the xtables lock: %w", err)
		}
	}
	if o.cleanup && o.dryRun {
		return nil
	}
	if o.cleanup {
		return iptables.Clean(ctx, log)
	}
	if o.verify {
		return o.check(ctx, stdout, log)
	}
	if err := o.complete(log); err != nil {
		return err
	}
	if o.dryRun {
		return o.print(stdout)
	}
	if o.skipApply {
		log.Info("rules are not applied, as --skip-rule-apply asks")
	} else if err := iptables.Apply(ctx, o.config, log); err != nil {
		return err
	}
	if !o.validate {
		return nil
	}
	if err := iptables.Probe(ctx, o.config, o.probePort, o.probeTimeout, log); err != nil {
		return &cli.StatusError{Status: exitValidation, Err: err}
	}
	return nil
}

// print writes what iptables-restore and ip6tables-restore, or nft, would be given in a
// pod without rules, and as comments what is done by no rule, to w and to the file that
// DRY_RUN_FILE_PATH names.
func (o *captureOptions) print(w io.Writer) error {
	text := o.script()
	for _, command := range iptables.Commands(o.config) {
		text += "# " + command + "\n"
	}
	if o.dryRunFile != "" {
		if err := os.WriteFile(o.dryRunFile, []byte(text), 0o644); err != nil {
			return fmt.Errorf("env DRY_RUN_FILE_PATH: write the dry run: %w", err)
		}
	}
	_, err := io.WriteString(w, text)
	return err
}

// script returns the rules as the programs take them that a person would use.
func (o *captureOptions) script() string {
	rules := iptables.Rules(o.config)
	if o.config.Backend == iptables.Native {
		return "# nft -f -\n" + string(iptables.RenderNative(rules))
	}
	text := "# iptables-restore --noflush\n" + string(iptables.Render(rules, iptables.IPv4))
	if o.config.IPv6 {
		text += "# ip6tables-restore --noflush\n" + string(iptables.Render(rules, iptables.IPv6))
	}
	return text
}

// captureHost is what the rules depend on besides flags and environment.
type captureHost struct {
	addresses   func() ([]netip.Addr, error) // of all interfaces
	resolvConf  string
	lookupUser  func(name string) (uid string, err error)
	lookupGroup func(name string) (gid string, err error)
}

func thisHost() captureHost {
	return captureHost{
		addresses:  interfaceAddresses,
		resolvConf: resolvConfPath,
		lookupUser: func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		},
		lookupGroup: func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		},
	}
}

func interfaceAddresses() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// complete adds what the pod itself says: its IP versions and its nameservers.
func (o *captureOptions) complete(log *slog.Logger) error {
	addrs, err := o.host.addresses()
	if err != nil {
		return err
	}
	if o.config.IPv6, err = iptables.PodHasIPv6(addrs, o.dualStack); err != nil {
		return err
	}
	dns := &o.config.DNS
	if !dns.Capture {
		return nil
	}
	if !dns.All {
		text, err := os.ReadFile(o.host.resolvConf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("find the nameservers: %w", err)
		}
		dns.Servers = nameservers(string(text))
	}
	if !dns.All && len(dns.Servers) == 0 {
		log.Warn("DNS is not captured: there is no nameserver to capture queries to; --capture-all-dns needs none", "file", o.host.resolvConf)
		dns.Capture = false
	}
	if dns.Capture && o.autoAllocate {
		o.config = o.config.WithVIPs()
	}
	return nil
}

// nameservers returns the addresses in the text of a resolv.conf(5), as the resolver
// of glibc reads it: other lines and malformed addresses are passed over.
func nameservers(text string) []netip.Addr {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(words[1])
		if err != nil {
			continue
		}
		a = a.Unmap().WithZone("")
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}
