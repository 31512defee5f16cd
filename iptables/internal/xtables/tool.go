package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/rule"
)

// lockWait is the wait for the xtables lock, which kube-proxy and CNI plugins of
// hostNetwork pods hold for long; Istio's value.
const lockWait = "--wait=30"

// Tool is the pair iptables-save and iptables-restore of one back end and family.
type Tool struct {
	backend rule.Backend
	family  rule.Family
}

// Name is that of the program for a verb: save or restore.
func (t Tool) Name(verb string) string {
	parts := []string{"iptables"}
	if t.family == rule.IPv6 {
		parts[0] = "ip6tables"
	}
	if t.backend != rule.Plain {
		parts = append(parts, string(t.backend))
	}
	return strings.Join(append(parts, verb), "-")
}

// installed reports whether both binaries are in PATH.
func (t Tool) installed() bool {
	for _, verb := range []string{"save", "restore"} {
		if _, err := exec.LookPath(t.Name(verb)); err != nil {
			return false
		}
	}
	return true
}

// save starts to read every table in use, and returns what waits for the text.
func (t Tool) save(ctx context.Context) func() (string, error) {
	return start(ctx, nil, t.Name("save"))
}

// restore makes each table in input exactly what input says or, with --noflush, adds
// input to what is there.
func (t Tool) restore(ctx context.Context, input []byte, args ...string) error {
	if t.backend != rule.NFT { // nf_tables has transactions and needs no lock
		args = append(args, lockWait)
	}
	_, err := start(ctx, input, t.Name("restore"), args...)()
	if err == nil || t.backend == rule.NFT {
		return err
	}
	locked := strings.Contains(err.Error(), xtablesLock)
	if !locked && ctx.Err() == nil {
		return err
	}
	holder := xtablesLockHolder(exec.Command("").Environ())
	if holder == "" && locked {
		holder = access.Process(0)
	}
	if holder != "" {
		err = fmt.Errorf("%w: the xtables lock is held by %s", err, holder)
	}
	return err
}

// start starts a binary on the calling thread, and returns what waits for its end.
func start(ctx context.Context, input []byte, name string, args ...string) (wait func() (string, error)) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	cmd.ExtraFiles = access.Inherited(ctx)
	err := cmd.Start()
	return func() (string, error) {
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			return "", explain(name, err, stderr.String(), input)
		}
		return stdout.String(), nil
	}
}

var failedLine = regexp.MustCompile(`line:? (\d+)`)

// explain makes one line of what a binary said, the rule it failed at, and the remedy.
func explain(name string, err error, stderr string, input []byte) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is %w: install iptables in the image of this container", name, rule.ErrAbsent)
	}
	var said []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "Try `") {
			said = append(said, line)
		}
	}
	text := fmt.Sprintf("%s: %v: %s", name, err, strings.Join(said, "; "))
	if m := failedLine.FindStringSubmatch(stderr); m != nil {
		lines := strings.Split(string(input), "\n")
		if n, _ := strconv.Atoi(m[1]); n > 0 && n <= len(lines) {
			text += fmt.Sprintf(" (line %d is %q)", n, lines[n-1])
		}
	}
	if hint := remedy(stderr); hint != "" {
		text += ": " + hint
	}
	for _, says := range []string{"Failed to initialize nft: Protocol not supported", "can't initialize", "unable to initialize table"} {
		if strings.Contains(stderr, says) {
			return fmt.Errorf("%s (%w)", text, rule.ErrAbsent)
		}
	}
	return errors.New(text)
}

// remedies are what can be done about the messages of iptables 1.8, first match first.
var remedies = []struct{ says, do string }{
	{"lock file", "make /run writable, or name a writable file in XTABLES_LOCKFILE"},
	{xtablesLock, "another program is changing the rules: it must end first"},
	{"you must be root", access.Needs},
	{"Operation not permitted", access.Needs},
	{"Permission denied", access.Needs},
	{"Protocol not supported", "the kernel has no nf_tables: use --force-iptables-binary=legacy"},
	{"does not exist", "the kernel lacks a table: load nf_tables and nft_compat, or ip_tables, iptable_nat, iptable_raw and iptable_mangle (ip6_ for IPv6), on the node"},
	{"unable to initialize table", "the kernel lacks a table: load iptable_nat, iptable_raw and iptable_mangle (ip6table_ for IPv6) on the node"},
	{"No chain/target/match by that name", missingModule},
	{"missing kernel module", missingModule},
	{"No such file or directory", missingModule},
}

const missingModule = "the kernel lacks a module: load xt_REDIRECT, xt_owner, xt_multiport, xt_comment, xt_conntrack, xt_CT and nf_nat on the node"

func remedy(stderr string) string {
	for _, r := range remedies {
		if strings.Contains(stderr, r.says) {
			return r.do
		}
	}
	return ""
}
