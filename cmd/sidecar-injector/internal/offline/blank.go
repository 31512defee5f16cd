package offline

import (
	"bytes"
	"reflect"

	"go.yaml.in/yaml/v3"
)

// blankMark stands for a blank line while a document is a tree, which keeps comments and no blank lines.
const blankMark = "# (understudy: a blank line)"

// editKeepingBlanks is edit that also keeps the document's blank lines. A blank line can mean something, in some scalars; where
// anything but blank lines would come out otherwise, they are not kept.
func editKeepingBlanks(text []byte, ops []operation) ([]byte, error) {
	without, err := edit(text, ops)
	if err != nil {
		return nil, err
	}
	marked := markBlanks(text)
	if bytes.Contains(text, []byte(blankMark)) || bytes.Equal(marked, text) {
		return without, nil
	}
	with, err := edit(marked, ops)
	if err != nil {
		return without, nil
	}
	with = append(unmarkBlanks(with), text[len(trimBlanks(text)):]...)
	if !bytes.Equal(dropBlanks(with), dropBlanks(without)) || !sameValue(with, without) {
		return without, nil
	}
	return with, nil
}

// markBlanks puts a comment in the place of each blank line, indented as the line that follows: what is above belongs to that. Those
// at the end stay away.
func markBlanks(text []byte) []byte {
	var out, blanks []byte
	for line := range bytes.Lines(text) {
		if isBlank(line) {
			blanks = append(blanks, line...)
			continue
		}
		indent := line[:len(line)-len(bytes.TrimLeft(line, " "))]
		for blank := range bytes.Lines(blanks) {
			out = append(append(append(out, indent...), blankMark...), ending(blank)...)
		}
		out, blanks = append(out, line...), nil
	}
	return out
}

// trimBlanks is a text without the blank lines at its end.
func trimBlanks(text []byte) []byte {
	trimmed := bytes.TrimRight(text, " \t\r\n")
	if end := bytes.IndexByte(text[len(trimmed):], '\n'); end >= 0 {
		return text[:len(trimmed)+end+1]
	}
	return text
}

func unmarkBlanks(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if string(bytes.TrimSpace(line)) == blankMark {
			line = ending(line)
		}
		out = append(out, line...)
	}
	return out
}

func dropBlanks(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !isBlank(line) {
			out = append(out, line...)
		}
	}
	return out
}

func isBlank(line []byte) bool { return len(bytes.TrimSpace(line)) == 0 }

// ending is how a line ends.
func ending(line []byte) []byte {
	return line[len(bytes.TrimRight(line, "\r\n")):]
}

// sameValue reports whether two documents say the same.
func sameValue(a, b []byte) bool {
	var x, y any
	return yaml.Unmarshal(a, &x) == nil && yaml.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
