package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables/internal/policyrouting"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// world is a network namespace of tests: what each back end holds, and what was done.
type world struct {
	held     map[string][]string // of a back end and its IP versions: purposes of rules of ours
	others   map[string]bool     // somebody else has rules there
	marks    []uint32            // of TPROXY rules
	routed   policyrouting.Change
	fails    map[string]bool // what fails: it is half done by then
	done     []string
	onChange func() // is called in the middle of each change
}

func newWorld() *world {
	return &world{held: map[string][]string{}, others: map[string]bool{}, fails: map[string]bool{}}
}

func (w *world) do(what string) error {
	w.done = append(w.done, what)
	if w.onChange != nil {
		w.onChange()
	}
	if w.fails[what] {
		return errors.New(what + " fails")
	}
	return nil
}

// look returns the back ends as they are now, in the order of the real ones.
func (w *world) look() (out []backend) {
	for _, at := range []fakeBackend{{name: rule.NFT, family: rule.IPv4}, {name: rule.NFT, family: rule.IPv6},
		{name: rule.Legacy, family: rule.IPv4}, {name: rule.Legacy, family: rule.IPv6}, {name: rule.Native, family: rule.Both}} {
		at.world = w
		at.before = w.held[at.String()]
		out = append(out, at)
	}
	return out
}

func (w *world) transition() transition {
	w.done = nil
	return transition{w.look(), func(c policyrouting.Change) routing { return &fakeRouting{w, c, w.routed, 0} }, slog.New(slog.DiscardHandler)}
}

func (w *world) apply(ctx context.Context, c Config) error {
	return w.transition().apply(ctx, c, saved.Want(Rules(c)))
}

// state is what a test compares.
func (w *world) state() map[string]string {
	out := map[string]string{}
	for at, rules := range w.held {
		if len(rules) > 0 {
			out[at] = strings.Join(rules, ", ")
		}
	}
	out["routes"] = fmt.Sprint(w.routed.Passthrough, w.routed.Policies)
	return out
}

// fakeBackend is a back end of a world, as it was found.
type fakeBackend struct {
	world  *world
	name   rule.Backend
	family rule.Family
	before []string
}

func (b fakeBackend) String() string       { return fmt.Sprintf("%s %v", b.name, b.family) }
func (b fakeBackend) Saved() []saved.State { return nil }
func (b fakeBackend) Marks() []uint32      { return b.world.marks }

func (b fakeBackend) Holding() rule.Holding {
	h := rule.Holding{Backend: b.name, Family: b.family}
	switch {
	case len(b.before) > 0:
		h.Used = rule.UsedByUs
	case b.world.others[b.String()]:
		h.Used = rule.UsedByOthers
	}
	return h
}

func (b fakeBackend) Make(_ context.Context, want *saved.Wanted) (int, error) {
	var rules []string
	if want != nil {
		for _, r := range want.Rules {
			if _, ok := r.ForFamily(b.family); ok || b.family == rule.Both {
				rules = append(rules, fmt.Sprintf("%s %s %s", r.Table, r.Chain, r.Why))
			}
		}
	}
	if slices.Equal(rules, b.before) {
		return 0, nil
	}
	err := b.world.do("make " + b.String())
	if err != nil {
		rules = rules[:len(rules)/2]
	}
	b.world.held[b.String()] = rules
	return len(rules) + len(b.before), err
}

func (b fakeBackend) PutBack(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := b.world.do("put back " + b.String()); err != nil {
		return err
	}
	b.world.held[b.String()] = b.before
	return nil
}

// fakeRouting adds routes and takes them away as one step each.
type fakeRouting struct {
	world  *world
	want   policyrouting.Change
	before policyrouting.Change
	steps  int
}

func (r *fakeRouting) Changed() bool { return r.steps > 0 }

func (r *fakeRouting) become(what string, to policyrouting.Change) error {
	if cmp.Equal(to, r.world.routed, cmp.AllowUnexported(policyrouting.Change{})) {
		return nil
	}
	if err := r.world.do(what); err != nil {
		return err
	}
	r.steps++
	r.world.routed = to
	return nil
}

func (r *fakeRouting) Add() error {
	to := r.world.routed
	to.Marks = nil
	to.Passthrough = to.Passthrough || r.want.Passthrough
	for _, p := range r.want.Policies {
		if !slices.Contains(to.Policies, p) {
			to.Policies = append(slices.Clip(to.Policies), p)
		}
	}
	return r.become("add routes", to)
}

func (r *fakeRouting) Remove() error {
	to := r.want
	to.Marks = nil
	return r.become("remove routes", to)
}

func (r *fakeRouting) Undo() error {
	if !r.Changed() {
		return nil
	}
	return r.become("undo routes", r.before)
}
