package iptables

// readBothWays reads a rule in the short way and in the long one.
func readBothWays(spec string) (plain, words savedRule, short, long bool) {
	plain, words = savedRule{spec: spec}, savedRule{spec: spec}
	short, long = plain.readPlain(), words.readWords()
	return plain, words, short, long
}
