package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

// Stream parses the documents of a file in turn, into trees as the YAML parser makes them: map[any]any, []any, string,
// bool, int, int64, uint64, float64, time.Time (only where the document says !!timestamp) and nil.
//
// One parser reads all documents, as making one costs half as much as parsing a small document. The first error ends
// that: from then on each document has its own, so that a broken one does not take its neighbours with it.
type Stream struct {
	shared *yaml.Decoder // of the documents that canShare; nil once one was bad
}

// NewStream returns the stream of what next will be called with, in this order. They are of one file, so that each but
// the last ends with its line.
func NewStream(chunks []Chunk) *Stream {
	size := 0
	for _, c := range chunks {
		size += len(c.Text) + len("---\n")
	}
	var text bytes.Buffer
	text.Grow(size)
	for _, c := range chunks {
		if c.canShare() {
			text.WriteString("---\n")
			text.Write(c.Text)
		}
	}
	s := &Stream{shared: yaml.NewDecoder(&text)}
	s.shared.SetStrict(true)
	return s
}

// Next parses the next document. A key that is given twice is an error. Line numbers in errors are those of the file.
func (s *Stream) Next(c Chunk) (tree any, err error) {
	if c.isJSON() {
		return parseJSON(json.NewDecoder(bytes.NewReader(c.Text)))
	}
	if s.shared != nil && c.canShare() {
		if s.shared.Decode(&tree) == nil {
			return tree, nil
		}
		s.shared, tree = nil, nil
	}
	if c.merges() {
		tree, err = parseMerging(c.Text)
	} else {
		err = yaml.UnmarshalStrict(c.Text, &tree)
	}
	if err != nil {
		return nil, fmt.Errorf("is not YAML: %s", fileLines(err.Error(), c.Line-1))
	}
	return tree, nil
}

// isJSON says whether the document is a JSON object. Indented with tabs, that is not YAML.
func (c Chunk) isJSON() bool {
	text := bytes.TrimLeft(c.Text, " \t\r\n")
	return len(text) > 0 && text[0] == '{' && json.Valid(text)
}

// merges says whether the document may have merge keys.
func (c Chunk) merges() bool { return bytes.Contains(c.Text, mergeKey) }

// canShare says whether the document is YAML that means the same behind another one. What may hold a marker does not:
// YAML 1.1 knows line breaks that Split does not. Nor does a byte order mark, which is none within a text.
func (c Chunk) canShare() bool {
	return !bytes.Contains(c.Text, documentStart) && !bytes.Contains(c.Text, documentEnd) &&
		!bytes.HasPrefix(c.Text, byteOrderMark) && !c.merges() && !c.isJSON()
}

// parseJSON returns the next value of valid JSON. Its recursion is bounded by json.Valid, which takes 10,000 levels.
func parseJSON(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("is not JSON: %w", err)
	}
	switch token {
	case json.Delim('{'):
		return parseJSONObject(d)
	case json.Delim('['):
		list := []any{}
		for d.More() {
			item, err := parseJSON(d)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err = d.Token() // the closing bracket
		return list, err
	}
	return token, nil
}

func parseJSONObject(d *json.Decoder) (any, error) {
	fields := map[any]any{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("is not JSON: %w", err)
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("is not JSON: key %q already set in map", Abridge(fmt.Sprint(name)))
		}
		if fields[name], err = parseJSON(d); err != nil {
			return nil, err
		}
	}
	_, err := d.Token() // the closing brace
	return fields, err
}

// fileLines adds offset to the line number of a message of the YAML parser, and makes the message one line.
func fileLines(msg string, offset int) string {
	msg = strings.Join(strings.Fields(strings.TrimPrefix(msg, "yaml: ")), " ")
	return regexp.MustCompile(`\bline (\d+)\b`).ReplaceAllStringFunc(msg, func(m string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(m, "line "))
		if err != nil {
			return m
		}
		return "line " + strconv.Itoa(n+offset)
	})
}

// keyName is a key of a tree as JSON would spell it: YAML has keys that are no strings, such as 1 and true.
func keyName(k any) string {
	switch k := k.(type) {
	case string:
		return k
	case nil:
		return "null"
	}
	return fmt.Sprint(k)
}

// KeyNames returns the names of all keys, sorted.
func KeyNames(fields map[any]any) []string {
	names := make([]string, 0, len(fields))
	for k := range fields {
		names = append(names, keyName(k))
	}
	slices.Sort(names)
	return names
}
