package saved

// ReadBothWays reads a rule in the short way and in the long one.
func ReadBothWays(spec string) (plain, words Rule, short, long bool) {
	plain, words = Rule{Spec: spec}, Rule{Spec: spec}
	short, long = plain.readPlain(), words.readWords()
	return plain, words, short, long
}
