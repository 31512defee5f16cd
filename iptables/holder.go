package iptables

import (
	"context"
	"fmt"
	"sync"
)

// holder is a place where rules are held, as it was found before anything was changed:
// one IP version's tables of iptables-legacy or iptables-nft, or our tables of nf_tables.
type holder interface {
	fmt.Stringer
	place() (Backend, Family)
	usage() usage
	// make makes d all that there is of ours, as far as its IP versions go, and returns
	// how many changes that takes: none when all is as it should be.
	make(ctx context.Context, d *desired) (changes int, err error)
	marks() []uint32 // of TPROXY rules that were found
	// putBack makes everything of ours as it was found.
	putBack(ctx context.Context) error
}

// usage says who has rules in a place.
type usage int

const (
	unused usage = iota
	usedByOthers
	usedByUs // or by Istio before us
)

// desired are rules that are wanted in one back end, nil those where none is. In the
// form of iptables they are made once.
type desired struct {
	rules  []Rule
	v4, v6 func() ruleset
}

func desireRules(rules []Rule) *desired {
	return &desired{
		rules: rules,
		v4:    sync.OnceValue(func() ruleset { return wanted(rules, IPv4) }),
		v6:    sync.OnceValue(func() ruleset { return wanted(rules, IPv6) }),
	}
}

// desire returns the rules of c, ready for the back end where they will go.
func desire(c Config) *desired {
	d := desireRules(Rules(c))
	if c.Backend != Native {
		d.v4()
		d.v6()
	}
	return d
}

// saved returns the rules of one IP version as iptables-save would print them.
func (d *desired) saved(f Family) ruleset {
	switch {
	case d == nil:
		return nil
	case f == IPv4:
		return d.v4()
	}
	return d.v6()
}
