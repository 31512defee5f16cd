package document

import (
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// awkward are files whose documents could run into each other.
var awkward = []string{
	"a: 1\n---\nb: 2\n---\nc: 3",
	"a: 1\n---\nb: [\n---\nc: 3\n",
	"a: 1\n---\na: 1\na: 2\n---\nc: 3\n",
	"a: |+\n  x\n\n---\nb: |+\n  y\n...\nc: >+\n  z",
	"a: 1\r---\rb: 2\r\n---\nc: 3\n",
	"a: 1\u2028---\u2028b: 2\n---\nc: 3\n",
	"a: 'x\n---\nb: 2'\n---\nc: 3\n",
	"a: &x 1\nb: *x\n---\nc: *x\n---\nd: &x 2\ne: *x\n",
	"%TAG ! tag:x,2000:\n---\na: !b 1\n---\nc: !b 1\n",
	"--- {a: 1}\n--- {b: 2} {c: 3}\n--- # nothing\n--- null\n--- ~\n---\nd: 4\n",
	"--- {\"a\": 1}\n---\n{\t\"b\": [2, -1.5, true, null, \"x\", {}]}\n---\nc: 3\n",
	"a: \"---\"\n---\nb: x...\n---\n? c\n: 3\n",
	"\xff\xfea\x00:\x00 \x001\x00\n---\nb: 2\n",
	"a: \xff\n---\nb: 2\n",
	"a: 1\n...\n\xef\xbb\xbfb: 2\nc: 3\n---\n\xef\xbb\xbfd: 4\ne: 5\n",
}

// TestStream and FuzzStream want of documents that share a parser what each would be with a parser of its own.
func TestStream(t *testing.T) {
	for _, text := range awkward {
		checkStream(t, text)
	}
}

func FuzzStream(f *testing.F) {
	for _, text := range awkward {
		f.Add(text)
	}
	f.Fuzz(checkStream)
}

func checkStream(t *testing.T, text string) {
	chunks := Split([]byte(text))
	s := NewStream(chunks)
	for i, c := range chunks {
		got, err := s.Next(c)
		if c.isJSON() {
			continue
		}
		var want any
		wantErr := yaml.UnmarshalStrict(c.Text, &want)
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%q: document %d: error %v, alone %v", text, i+1, err, wantErr)
		} else if err == nil && fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) { // DeepEqual knows no NaN
			t.Errorf("%q: document %d: %#v, alone %#v", text, i+1, got, want)
		}
	}
}

// TestStreamIsShared wants the documents of an ordinary file to share a parser to the end.
func TestStreamIsShared(t *testing.T) {
	const entry = "kind: ServiceEntry\nspec:\n  hosts: [a.x]\n"
	chunks := Split([]byte(entry + "---\n# b\n" + entry + "---\n{kind: ServiceEntry, spec: {hosts: [c.x]}}"))
	s := NewStream(chunks)
	for _, c := range chunks {
		if _, err := s.Next(c); err != nil || s.shared == nil {
			t.Errorf("%s: error %v, shared %v", c.Text, err, s.shared != nil)
		}
	}
}

// TestJSONTree wants the same tree of JSON as of YAML, and an error for what YAML refuses too.
func TestJSONTree(t *testing.T) {
	const text = `{"a": {"b": [1, "x", null, true, {}, []]}, "c": ""}`
	var want any
	if err := yaml.UnmarshalStrict([]byte(strings.Replace(text, "1", "1.0", 1)), &want); err != nil {
		t.Fatal(err)
	}
	c := Chunk{Text: []byte("\t" + strings.ReplaceAll(text, " ", "\n\t"))}
	if got, err := NewStream([]Chunk{c}).Next(c); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%#v, error %v, want %#v", got, err, want)
	}
	for _, bad := range []string{`{"a": 1, "a": 2}`, `{"a": [{"b": 1, "b": 1}]}`, `{"a": 1e999}`} {
		c := Chunk{Text: []byte(bad)}
		if got, err := NewStream([]Chunk{c}).Next(c); err == nil || !strings.HasPrefix(err.Error(), "is not JSON: ") {
			t.Errorf("%s: %v, error %v", bad, got, err)
		}
	}
	deep := Chunk{Text: []byte(strings.Repeat(`{"a":`, 1<<20))}
	if _, err := NewStream([]Chunk{deep}).Next(deep); err == nil {
		t.Error("a document of a million levels was taken")
	}
}

func TestKeyName(t *testing.T) {
	for _, c := range []struct {
		key  any
		want string
	}{{"a", "a"}, {1, "1"}, {true, "true"}, {1.5, "1.5"}, {nil, "null"}, {math.Inf(1), "+Inf"}} {
		if got := keyName(c.key); got != c.want {
			t.Errorf("%v: %q, want %q", c.key, got, c.want)
		}
	}
}
