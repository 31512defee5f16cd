// Package nftables owns our tables in nf_tables, written, read back and changed by netlink.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
)

// State is what was found in nf_tables. Its tables hold both IP versions.
type State struct {
	found      []*nfTable // ours, or Istio's of the same names
	generation uint32     // of the state that was found
	foreign    bool       // somebody else has tables of nf_tables, and not by way of iptables
	log        *slog.Logger
}

// maxStale bounds reading anew what others change, on a node many times a second.
const maxStale = 20

// Make makes d all that there is of ours, and returns how many changes that took.
func (n State) Make(ctx context.Context, d *saved.Wanted) (int, error) {
	if d == nil {
		return n.become(ctx, nil)
	}
	return n.become(ctx, tables(d.Rules))
}

// Marks returns the marks that TPROXY rules of ours give.
func (n State) Marks() (out []uint32) {
	for _, t := range n.found {
		for _, c := range t.chains {
			for _, r := range c.rules {
				if r.err == nil && r.rule.Target.Verdict == rule.TPROXY {
					out = append(out, r.rule.Target.Mark)
				}
			}
		}
	}
	return out
}

// PutBack makes everything of ours as it was found, verbatim.
func (n State) PutBack(ctx context.Context) error {
	now, err := Look(n.log)
	if err == nil {
		_, err = now.become(ctx, n.found)
	}
	return err
}

// become makes want all that there is of ours, in one transaction. The kernel refuses it
// if anything has changed since it was read; then it is read again.
func (n State) become(ctx context.Context, want []*nfTable) (int, error) {
	for range maxStale {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		changes := changes(n.found, want)
		if len(changes) == 0 {
			return 0, nil
		}
		conn, err := dialNetfilter()
		if err != nil {
			return 0, explain("open a netlink socket", err)
		}
		err = errors.Join(conn.commit(n.generation, changes), conn.Close())
		if !errors.Is(err, errStale) {
			return len(changes), err
		}
		n.log.Debug("nf_tables was changed meanwhile, reading it again")
		if n, err = Look(n.log); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%w, %d times in a row: something else in this network namespace writes rules all the time", errStale, maxStale)
}

// String names the back end in logs.
func (n State) String() string { return string(rule.Native) }

// Look reads what there is. errAbsent says that the kernel has no nf_tables.
func Look(log *slog.Logger) (State, error) {
	for range maxStale {
		conn, err := dialNetfilter()
		if err != nil {
			return State{}, absent(err)
		}
		n, err := conn.readState()
		if err := errors.Join(err, conn.Close()); !errors.Is(err, errStale) {
			n.log = log
			return n, absent(err)
		}
	}
	return State{}, fmt.Errorf("read nf_tables: %w, %d times in a row", errStale, maxStale)
}

// absent makes errAbsent of what a kernel says that does not know nf_tables.
func absent(err error) error {
	for _, says := range []unix.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOSYS} {
		if errors.Is(err, says) {
			return fmt.Errorf("nf_tables is %w: %w: %s", rule.ErrAbsent, err, Missing)
		}
	}
	if err != nil {
		return explain("read nf_tables", err)
	}
	return nil
}

// readState reads our tables, all of one generation.
func (c *nfConn) readState() (n State, err error) {
	if n.generation, err = c.generation(); err != nil {
		return n, err
	}
	tables, err := c.ask(unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return n, err
	}
	for _, b := range tables {
		family, attrs := b[0], b[nfgenmsgLen:]
		name := attrName(attrs, unix.NFTA_TABLE_NAME)
		i := slices.IndexFunc(rule.Tables, func(t rule.Table) bool { return TableName(t) == name })
		switch {
		case family == unix.NFPROTO_INET && i >= 0:
			t := &nfTable{name: rule.Tables[i], flags: attrUint32(attrs, unix.NFTA_TABLE_FLAGS)}
			n.found = append(n.found, t)
		case isForeign(family, name):
			n.foreign = true
		}
	}
	for _, t := range n.found {
		err := c.readTable(t)
		if errors.Is(err, unix.ENOENT) {
			err = errStale // it was there just before
		}
		if err != nil {
			return n, err
		}
	}
	now, err := c.generation()
	if err == nil && now != n.generation {
		err = errStale
	}
	return n, err
}

// isForeign reports whether a table is neither ours nor iptables-nft's, which is a back end.
func isForeign(family byte, name string) bool {
	return family == unix.NFPROTO_INET ||
		(family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6) && !slices.Contains(iptablesTables, name)
}

// chainMakers are the attributes of a chain that make it, of those that the kernel tells.
var chainMakers = []uint16{unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE, chainFlags}

const chainFlags = 10 // NFTA_CHAIN_FLAGS, not in x/sys

// readTable reads chains, sets and rules.
func (c *nfConn) readTable(t *nfTable) error {
	name := TableName(t.name)
	table := appendName(nil, unix.NFTA_TABLE_NAME, name)
	chains, err := c.dump(unix.NFT_MSG_GETCHAIN, nil)
	if err != nil {
		return err
	}
	for _, b := range chains {
		if attrName(b, unix.NFTA_CHAIN_TABLE) == name {
			t.chains = append(t.chains, &nfChain{name: attrName(b, unix.NFTA_CHAIN_NAME), hook: readHook(b), attrs: only(b, chainMakers)})
		}
	}
	sets, err := c.dump(unix.NFT_MSG_GETSET, table)
	if err != nil {
		return err
	}
	for _, b := range sets {
		lists, err := c.dump(unix.NFT_MSG_GETSETELEM, appendName(slices.Clone(table), unix.NFTA_SET_ELEM_LIST_SET, attrName(b, unix.NFTA_SET_NAME)))
		if err != nil {
			return err
		}
		for i := range lists {
			lists[i] = attribute(lists[i], unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		}
		t.sets = append(t.sets, readSet(b, lists))
	}
	rules, err := c.dump(unix.NFT_MSG_GETRULE, table)
	if err != nil {
		return err
	}
	for _, b := range rules {
		if chain := t.find(attrName(b, unix.NFTA_RULE_CHAIN)); chain != nil {
			chain.rules = append(chain.rules, nfRule{exprs: attribute(b, unix.NFTA_RULE_EXPRESSIONS), userdata: attribute(b, unix.NFTA_RULE_USERDATA)})
		}
	}
	t.decode()
	return nil
}

// notUnderstood is the verdict that actual gives a rule that is none of ours.
const notUnderstood = "?"

// actual returns the rules that were found, in the order of evaluation and under the
// names of iptables. The error names those that say more than a Rule can; they are in
// their places, with the verdict notUnderstood and the reason as Why.
func (n State) actual() ([]rule.Rule, error) {
	var out []rule.Rule
	var errs []error
	for _, name := range rule.Tables {
		t := findTable(n.found, name)
		if t == nil {
			continue
		}
		for _, c := range t.chains {
			var rules []rule.Rule
			for i, r := range c.rules {
				if r.err != nil {
					errs = append(errs, fmt.Errorf("rule %d of chain %s of table inet %s %q: %w", i+1, c.name, TableName(name), r.rule.Why, r.err))
					r.rule.Target, r.rule.Why = rule.Target{Verdict: notUnderstood}, r.err.Error()
				}
				rules = append(rules, r.rule)
			}
			out = append(out, fold(rules)...)
		}
	}
	return out, errors.Join(errs...)
}

// Holding says who has rules there.
func (n State) Holding() rule.Holding {
	h := rule.Holding{Backend: rule.Native, Family: rule.Both}
	switch {
	case len(n.found) > 0:
		h.Used = rule.UsedByUs
	case n.foreign:
		h.Used = rule.UsedByOthers
	}
	return h
}

// Saved returns what was found as iptables-save would print it.
func (n State) Saved() (out []saved.State) {
	rules, _ := n.actual()
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		all := saved.Print(rules, f)
		h := n.Holding()
		h.Family = f
		out = append(out, saved.State{Holding: h, All: all, Ours: all})
	}
	return out
}
