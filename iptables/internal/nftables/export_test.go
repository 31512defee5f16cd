package nftables

import (
	"understudy.mesh/iptables/rule"
)

const (
	NotUnderstoodVerdict = notUnderstood
	GoesOnOption         = goesOn
)

// ToDo returns what make would do.
func (n State) ToDo(rules []rule.Rule) (out string) {
	for _, ch := range changes(n.found, tables(rules)) {
		out += ch.what + "\n"
	}
	return out
}

// Count returns how many rules were found.
func (n State) Count() (rules int) {
	for _, table := range n.found {
		for _, c := range table.chains {
			rules += len(c.rules)
		}
	}
	return rules
}

// ActualRules is actual.
func (n State) ActualRules() ([]rule.Rule, error) { return n.actual() }
