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
	rules := Rules(c)
	wants := map[Family]ruleset{IPv4: wanted(rules, IPv4), IPv6: wanted(rules, IPv6)} // meanwhile
	states, err := looked()
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	candidates, err := choose(states, c)
	if err != nil {
		return fmt.Errorf("apply capture rules: %w", err)
	}
	var errs []error
	for i, b := range candidates {
		change := transition{states: states, ipv6: c.IPv6, policies: c.policies(), log: log}
		for i := range states {
			if states[i].backend == b {
				change.want(i, wants[states[i].family])
			}
		}
		if err = change.make(ctx); err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || i == len(candidates)-1 {
			break
		}
		log.Warn("capture rules could not be applied, the other back end is next", "failed", b, "error", err)
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
	states, err := look(ctx, log)()
	if err == nil {
		err = transition{states: states, log: log}.make(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove capture rules: %w", err)
	}
	return nil
}

// state is what one tool found before anything was changed.
type state struct {
	tool
	before ruleset
	ours   ruleset
}

// look starts to read the state of every back end and family that this container and
// kernel have, side by side, and returns what waits for it.
func look(ctx context.Context, log *slog.Logger) func() ([]state, error) {
	all := tools()
	saving := make([]func() (string, error), len(all))
	for i, t := range all {
		saving[i] = t.saving(ctx)
	}
	return func() ([]state, error) {
		var states []state
		var absent, failed []error
		for i, t := range all {
			text, err := saving[i]()
			if errors.Is(err, errAbsent) {
				log.Debug("skipped an iptables back end", "binary", t.name("save"), "reason", err)
				absent = append(absent, err)
				continue
			}
			if err != nil {
				failed = append(failed, fmt.Errorf("read %v rules: %w", t.family, err))
				continue
			}
			before := parseRuleset(text)
			states = append(states, state{tool: t, before: before, ours: before.ours()})
		}
		if len(states) == 0 {
			failed = append(failed, absent...)
		}
		return states, errors.Join(failed...)
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
// of ours are already, then where anybody's are (packets meet both, but people look
// into one), then nft, which has transactions and no lock. Istio's way, legacy if it
// has any rule, makes a second run go elsewhere than the first.
func choose(states []state, c Config) ([]Backend, error) {
	const anybody, us = 1, 2
	score := map[Backend]int{}
	families := map[Backend]Family{}
	var order []Backend
	for _, s := range states {
		if families[s.backend] == 0 {
			order = append(order, s.backend)
		}
		families[s.backend] |= s.family
		if len(s.ours) > 0 {
			score[s.backend] = us
		} else if s.before.hasRules() {
			score[s.backend] = max(score[s.backend], anybody)
		}
	}
	needed := IPv4
	if c.IPv6 {
		needed = Both
	}
	order = slices.DeleteFunc(order, func(b Backend) bool {
		return families[b]&needed != needed || c.Backend != Auto && b != c.Backend
	})
	if len(order) == 0 {
		return nil, fmt.Errorf("no iptables back end for %v, %s wanted: "+
			"install iptables and ip6tables of that kind in this container's image, and load their modules on the node", needed, wantedName(c.Backend))
	}
	slices.SortStableFunc(order, func(a, b Backend) int { return score[b] - score[a] })
	return order, nil
}

func wantedName(b Backend) string {
	if b == Auto {
		return "legacy or nft"
	}
	return string(b)
}
