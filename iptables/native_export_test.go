package iptables

const (
	notUnderstoodVerdict = notUnderstood
	goesOnOption         = goesOn
)

// toDo returns what make would do.
func (n native) toDo(rules []Rule) (out string) {
	for _, ch := range nativeChanges(n.found, nativeTables(rules)) {
		out += ch.what + "\n"
	}
	return out
}

// count returns how many rules were found.
func (n native) count() (rules int) {
	for _, table := range n.found {
		for _, c := range table.chains {
			rules += len(c.rules)
		}
	}
	return rules
}

// actualRules is actual.
func (n native) actualRules() ([]Rule, error) { return n.actual() }
