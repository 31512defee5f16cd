package iptables

import (
	"bytes"
	"context"
)

// state is what one tool of iptables found.
type state struct {
	tool
	before ruleset
	ours   ruleset
}

// String names the program that changes the rules, for logs.
func (s state) String() string { return s.name("restore") }

func (s state) marks() (out []uint32) {
	for _, tab := range s.ours {
		for _, r := range tab.rules {
			if m, ok := r.tproxyMark(); ok {
				out = append(out, m)
			}
		}
	}
	return out
}

func (s state) make(ctx context.Context, d *desired) (changes int, err error) {
	input := plan(s.ours, d.ruleset(s.family))
	if len(input) == 0 {
		return 0, nil
	}
	return bytes.Count(input, []byte("\n")), s.change(ctx, input)
}

// putBack replaces the tables that differ from what they were by their earlier text,
// so that our rules have their earlier places among those of others, too.
func (s state) putBack(ctx context.Context) error {
	text, err := s.save(ctx)
	if err != nil {
		return err
	}
	var input bytes.Buffer
	for _, now := range parseRuleset(text) {
		before := s.before.find(now.name)
		if before == nil { // made by us: the built-in chains alone
			before = now.emptied()
		}
		if !before.identical(now) {
			before.write(&input)
		}
	}
	if input.Len() == 0 {
		return nil
	}
	return s.replace(ctx, input.Bytes())
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

// holding says who has rules there.
func (s state) holding() Holding {
	h := Holding{Backend: s.backend, Family: s.family}
	switch {
	case len(s.ours) > 0:
		h.Used = UsedByUs
	case s.before.hasRules():
		h.Used = UsedByOthers
	}
	return h
}

// saved returns what was found.
func (s state) saved() []savedState {
	return []savedState{{Holding: s.holding(), all: s.before, ours: s.ours}}
}

// look starts to read what there is, and returns what waits for it.
func (t tool) look(ctx context.Context) func() (state, error) {
	saving := t.saving(ctx)
	return func() (state, error) {
		text, err := saving()
		before := parseRuleset(text)
		return state{tool: t, before: before, ours: before.ours()}, err
	}
}
