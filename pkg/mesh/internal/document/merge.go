package document

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v2"
)

// mergeKey is YAML's "<<" (yaml.org/type/merge.html): its value, a mapping or a list of mappings, gives the keys that
// the mapping around it does not have itself. The parser would take a key that is given and merged for one that is given
// twice, and would have the later of the two count.
var mergeKey = []byte("<<")

// parseMerging parses a document that has merge keys. The parser sees each of them as a key of its own kind, which it
// leaves alone: "<<" with a mark and a number.
func parseMerging(text []byte) (tree any, err error) {
	mark := "m"
	for bytes.Contains(text, append(slices.Clone(mergeKey), mark...)) {
		mark += "m"
	}
	parts := bytes.Split(text, mergeKey)
	var marked bytes.Buffer
	marked.Write(parts[0])
	for i, part := range parts[1:] {
		fmt.Fprintf(&marked, "%s%s%d%s%s", mergeKey, mark, i, mark, part)
	}
	if err := yaml.UnmarshalStrict(marked.Bytes(), &tree); err != nil {
		return nil, err
	}
	m := merger{regexp.MustCompile(string(mergeKey) + mark + `(\d+)` + mark)}
	return m.value(tree)
}

// merger replaces the marked keys of a tree by what they stand for, and takes the marks out of all other text.
type merger struct{ marked *regexp.Regexp }

func (m merger) value(v any) (any, error) {
	switch v := v.(type) {
	case string:
		return m.unmarked(v), nil
	case []any:
		for i := range v {
			var err error
			if v[i], err = m.value(v[i]); err != nil {
				return nil, err
			}
		}
		return v, nil
	case map[any]any:
		return m.mapping(v)
	}
	return v, nil
}

func (m merger) unmarked(s string) string {
	return m.marked.ReplaceAllLiteralString(s, string(mergeKey))
}

// mapping returns the keys of fields, and those that its merge keys give. Of two merge keys the later counts, of a list
// the earlier item.
func (m merger) mapping(fields map[any]any) (map[any]any, error) {
	out := make(map[any]any, len(fields))
	merged := map[int]any{}
	for k, v := range fields {
		v, err := m.value(v)
		if err != nil {
			return nil, err
		}
		name, isText := k.(string)
		number := m.marked.FindStringSubmatch(name)
		switch {
		case number != nil && number[0] == name:
			n, err := strconv.Atoi(number[1])
			if err != nil {
				return nil, fmt.Errorf("read the place of a merge key: %w", err)
			}
			merged[n] = v
		case isText:
			out[m.unmarked(name)] = v
		default:
			out[k] = v
		}
	}
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(merged))) {
		if err := mergeInto(out, merged[n]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// mergeInto gives out the keys of what a merge key has that out has not.
func mergeInto(out map[any]any, from any) error {
	list, ok := from.([]any)
	if !ok {
		list = []any{from}
	}
	for _, item := range list {
		fields, ok := item.(map[any]any)
		if !ok {
			return errors.New("the value of a merge key (<<) should be a mapping, or a list of mappings")
		}
		for k, v := range fields {
			if _, has := out[k]; !has {
				out[k] = v
			}
		}
	}
	return nil
}
