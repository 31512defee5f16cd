package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// undoTimeout bounds putting things back after a failure: at most one wait for the
// lock (see lockWait) for each family, and some time to work.
const undoTimeout = 90 * time.Second

// Apply makes the rules of c the rules of the network namespace of the calling
// thread, whatever of ours is there now, and returns once they are in force. When
// they are already, it changes nothing. On an error the state is what it was before.
// It needs NET_ADMIN and, for the legacy back end, NET_RAW. Of several at once in one
// namespace, the others wait.
func Apply(ctx context.Context, c Config, log *slog.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	locked, release, err := acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	defer release()
	ctx = locked
	looked := look(ctx, log)
	d := desire(c) // meanwhile
	holders, err := looked()
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	candidates, err := choose(holders, c)
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	var errs []error
	for i, b := range candidates {
		change := transition{holders: holders, ipv6: c.IPv6, policies: c.policies(), log: log}
		for i, h := range holders {
			if there, _ := h.place(); there == b {
				change.want(i, d)
			}
		}
		if err = change.make(ctx); err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || i == len(candidates)-1 {
			break
		}
		log.Warn("capture rules could not be applied, another back end is next", "failed", b, "next", candidates[i+1], "error", err)
	}
	return fmt.Errorf("apply capture rules: %w", errors.Join(errs...))
}

// Clean removes everything of ours and of Istio's from every back end, whatever
// configuration made it. What is not there is not missed.
func Clean(ctx context.Context, log *slog.Logger) error {
	ctx, release, err := acquire(ctx, log)
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	defer release()
	holders, err := look(ctx, log)()
	if err == nil {
		err = transition{holders: holders, log: log}.make(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	return nil
}

// state is what one tool of iptables found.
type state struct {
	tool
	before ruleset
	ours   ruleset
}

// look starts to read the state of every back end and family that this container and
// kernel have, side by side, and returns what waits for it.
func look(ctx context.Context, log *slog.Logger) func() ([]holder, error) {
	all := tools()
	saving := make([]func() (string, error), len(all))
	for i, t := range all {
		saving[i] = t.saving(ctx)
	}
	return func() ([]holder, error) {
		var out []holder
		var absent, failed []error
		note := func(h holder, what string, err error) {
			switch {
			case err == nil:
				out = append(out, h)
			case errors.Is(err, errAbsent):
				log.Debug("skipped a back end", "what", what, "reason", err)
				absent = append(absent, err)
			default:
				failed = append(failed, fmt.Errorf("read the rules of %s: %w", what, err))
			}
		}
		n, nativeErr := lookNative(log)
		for i, t := range all {
			text, err := saving[i]()
			before := parseRuleset(text)
			note(state{tool: t, before: before, ours: before.ours()}, t.name("save"), err)
		}
		note(n, n.String(), nativeErr)
		if len(out) == 0 {
			failed = append(failed, absent...)
		}
		return out, errors.Join(append(failed, ctx.Err())...)
	}
}

// tools returns those of every back end in PATH, the preferred one first, or plain
// iptables where there is nothing else.
func tools() []tool {
	var out []tool
	for _, b := range []Backend{NFT, Legacy} {
		if (tool{b, IPv4}).installed() {
			out = append(out, tool{b, IPv4}, tool{b, IPv6})
		}
	}
	if len(out) == 0 {
		out = append(out, tool{Plain, IPv4}, tool{Plain, IPv6})
	}
	return out
}

// checkPrivilege fails early and in plain words: iptables itself would say
// "Permission denied" or, worse, "table does not exist".
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New(needs)
	}
	return nil
}

// choose returns the back ends that can do what c asks for, best first: where rules
// of ours are already, then where anybody's are (packets meet all, but people look
// into one), then iptables-nft, which has transactions and no lock, and where people
// look first, and at last our own way into nf_tables, which needs nothing installed.
// Istio's way, legacy if it has any rule, makes a second run go elsewhere than the first.
func choose(holders []holder, c Config) ([]Backend, error) {
	used := map[Backend]usage{}
	families := map[Backend]Family{}
	var order []Backend
	for _, h := range holders {
		b, f := h.place()
		if families[b] == 0 {
			order = append(order, b)
		}
		families[b] |= f
		used[b] = max(used[b], h.usage())
	}
	needed := IPv4
	if c.IPv6 {
		needed = Both
	}
	order = slices.DeleteFunc(order, func(b Backend) bool {
		return families[b]&needed != needed || c.Backend != Auto && b != c.Backend
	})
	switch {
	case len(order) > 0:
		slices.SortStableFunc(order, func(a, b Backend) int { return int(used[b] - used[a]) })
		return order, nil
	case c.Backend == Native:
		return nil, fmt.Errorf("back end %s wanted: %s", Native, missingNFT)
	}
	return nil, fmt.Errorf("no iptables back end for %v, %s wanted: "+
		"install iptables and ip6tables of that kind in this container's image, and load their modules on the node", needed, wantedName(c.Backend))
}

func wantedName(b Backend) string {
	if b == Auto {
		return "legacy or nft"
	}
	return string(b)
}
