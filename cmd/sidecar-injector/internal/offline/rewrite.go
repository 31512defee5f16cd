package offline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// Rewrite returns a file with the JSON patches made that patch returns for its workloads, nil for one that stays. A document
// in which nothing is patched stays to the byte; in the others order, comments and blank lines do.
func Rewrite(file string, stdin io.Reader, patch func(Workload) (ops []byte, err error)) ([]byte, error) {
	data, err := readFile(file, stdin)
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, d := range split(file, data) {
		text, err := d.rewrite(patch)
		if err != nil {
			return nil, err
		}
		out = append(out, d.mark...)
		if len(d.mark) > 0 && !bytes.HasSuffix(d.mark, []byte("\n")) && !bytes.Equal(text, d.text) {
			out = append(out, '\n') // what began behind the mark begins below it
		}
		out = append(out, text...)
	}
	return out, nil
}

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op, Path, From string
	Value          json.RawMessage
}

func (d document) rewrite(patch func(Workload) ([]byte, error)) ([]byte, error) {
	if d.empty() {
		return d.text, nil
	}
	found, err := d.workloads()
	if err != nil {
		return nil, err
	}
	var all []operation
	for _, w := range found {
		text, err := patch(w)
		if err != nil {
			return nil, d.errorf("%s %q: %w", w.Kind, w.Name, err)
		}
		var ops []operation
		if text != nil {
			err = json.Unmarshal(text, &ops)
		}
		if err != nil {
			return nil, d.errorf("%s %q: read a patch: %w", w.Kind, w.Name, err)
		}
		for _, o := range ops {
			o.Path, o.From = w.at+o.Path, w.at+o.From
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		return d.text, nil
	}
	text, err := editKeepingBlanks(d.text, all)
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return text, nil
}

// edit makes changes in the text of a document.
func edit(text []byte, ops []operation) ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		return nil, err
	}
	if err := expand(&root, maxNodes(text)); err != nil {
		return nil, err
	}
	for _, o := range ops {
		if err := o.apply(&root); err != nil {
			return nil, fmt.Errorf("%s %s: %w", o.Op, o.Path, err)
		}
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	form := formOf(&root)
	e.SetIndent(form.indent)
	if form.compact {
		e.CompactSeqIndent()
	}
	if err := errors.Join(e.Encode(&root), e.Close()); err != nil {
		return nil, err
	}
	if bytes.Contains(text, []byte("\r\n")) {
		return bytes.ReplaceAll(out.Bytes(), []byte("\n"), []byte("\r\n")), nil
	}
	return out.Bytes(), nil
}

// maxNodes bounds what aliases may make of a document.
func maxNodes(text []byte) *int { return new(10_000 + 10*len(text)) }

// expand puts what aliases and merges stand for in their place: a change at one of them is not one of all.
func expand(n *yaml.Node, budget *int) error {
	if *budget--; *budget < 0 {
		return errors.New("its aliases stand for too much")
	}
	n.Anchor = ""
	if n.Kind == yaml.AliasNode {
		*n = *copied(n.Alias)
		return expand(n, budget)
	}
	for _, c := range n.Content {
		if n.Style&yaml.FlowStyle != 0 && c.Tag == "!!null" {
			c.Value = "null" // one that is not written would come out as an empty text
		}
		if err := expand(c, budget); err != nil {
			return err
		}
	}
	if n.Kind == yaml.MappingNode {
		merge(n)
	}
	return nil
}

// merge gives a mapping what its keys << stand for: an own key wins, then the first of the merged.
func merge(n *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if key := n.Content[i]; key.Tag != "!!merge" {
			continue
		}
		sources := []*yaml.Node{n.Content[i+1]}
		if sources[0].Kind == yaml.SequenceNode {
			sources = sources[0].Content
		}
		n.Content = slices.Delete(n.Content, i, i+2)
		i -= 2
		for _, source := range sources {
			for j := 0; j+1 < len(source.Content); j += 2 {
				if find(n, source.Content[j].Value) < 0 {
					n.Content = append(n.Content, source.Content[j], source.Content[j+1])
				}
			}
		}
	}
}

func copied(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		c.Content[i] = copied(child)
	}
	return &c
}

// find is where a mapping has the value of a key, negative if nowhere.
func find(n *yaml.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return i + 1
		}
	}
	return -1
}

var errNowhere = errors.New("there is no such place")

// apply makes one change.
func (o operation) apply(root *yaml.Node) error {
	var value *yaml.Node
	switch o.Op {
	case "move":
		parent, key, err := place(root, o.From)
		if err != nil {
			return err
		}
		if value, err = take(parent, key); err != nil {
			return err
		}
	case "add", "replace":
		var err error
		if value, err = node(o.Value); err != nil {
			return err
		}
	}
	parent, key, err := place(root, o.Path)
	if err != nil {
		return err
	}
	if o.Op == "remove" {
		_, err = take(parent, key)
		return err
	}
	return put(parent, key, value, o.Op == "replace")
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// place is the last but one of a pointer's nodes, and the last one's key.
func place(root *yaml.Node, pointer string) (*yaml.Node, string, error) {
	parts := strings.Split(pointer, "/")
	n := root.Content[0]
	for _, part := range parts[1 : len(parts)-1] {
		i, err := index(n, unescape.Replace(part))
		if err != nil {
			return nil, "", err
		}
		n.Style &^= yaml.FlowStyle // what is added below would make an endless line
		n = n.Content[i]
	}
	n.Style &^= yaml.FlowStyle
	return n, unescape.Replace(parts[len(parts)-1]), nil
}

// index is where a node has a key.
func index(n *yaml.Node, key string) (int, error) {
	i := -1
	switch n.Kind {
	case yaml.MappingNode:
		i = find(n, key)
	case yaml.SequenceNode:
		if number, err := strconv.Atoi(key); err == nil && number < len(n.Content) {
			i = number
		}
	}
	if i < 0 {
		return 0, errNowhere
	}
	return i, nil
}

// take removes what a node has at a key.
func take(n *yaml.Node, key string) (*yaml.Node, error) {
	i, err := index(n, key)
	if err != nil {
		return nil, err
	}
	value, first := n.Content[i], i
	if n.Kind == yaml.MappingNode {
		first--
	}
	n.Content = slices.Delete(n.Content, first, i+1)
	return value, nil
}

// put adds a value to a node at a key, or replaces what is there.
func put(n *yaml.Node, key string, value *yaml.Node, replace bool) error {
	i, err := index(n, key)
	switch {
	case err == nil && (replace || n.Kind == yaml.MappingNode):
		value.LineComment = n.Content[i].LineComment
		n.Content[i] = value
	case replace:
		return errNowhere
	case n.Kind == yaml.MappingNode:
		name := yaml.Node{Kind: yaml.ScalarNode}
		name.SetString(key)
		n.Content = append(n.Content, plain(&name), value)
	case n.Kind == yaml.SequenceNode && err == nil:
		n.Content = slices.Insert(n.Content, i, value)
	case n.Kind == yaml.SequenceNode && (key == "-" || key == strconv.Itoa(len(n.Content))):
		n.Content = append(n.Content, value)
	default:
		return errNowhere
	}
	return nil
}

// node is a JSON value, in block style.
func node(value json.RawMessage) (*yaml.Node, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(value, &n); err != nil {
		return nil, err
	}
	return plain(n.Content[0]), nil
}

// plain writes a node without the marks of JSON. A string keeps its quotes where kubectl, whose YAML is of version 1.1, would
// take it for something else without them.
func plain(n *yaml.Node) *yaml.Node {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		var v any
		if err := yamlv2.Unmarshal([]byte(n.Value), &v); (err != nil || v != any(n.Value)) && !strings.Contains(n.Value, "\n") {
			n.Style = yaml.SingleQuotedStyle
		}
	}
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle // {} and []
	}
	for _, c := range n.Content {
		plain(c)
	}
	return n
}

// form is how a document is indented.
type form struct {
	indent  int
	compact bool // the elements of a list are where its key is
}

// formOf looks for the first mapping and the first list in a mapping that are written as blocks.
func formOf(root *yaml.Node) form {
	f := form{compact: true}
	var list *bool
	var look func(n *yaml.Node)
	look = func(n *yaml.Node) {
		for i := 0; n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle == 0 && i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			block := value.Style&yaml.FlowStyle == 0 && value.Line > key.Line
			switch {
			case block && value.Kind == yaml.MappingNode && f.indent == 0:
				f.indent = value.Column - key.Column
			case block && value.Kind == yaml.SequenceNode && list == nil:
				list = new(value.Column == key.Column)
			}
		}
		for _, c := range n.Content {
			look(c)
		}
	}
	look(root)
	if f.indent < 2 {
		f.indent = 2
	}
	if list != nil {
		f.compact = *list
	}
	return f
}
