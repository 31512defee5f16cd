package document

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// TestMergeKeys wants a mapping's own keys to count, wherever its merge key stands, and of a list the earlier item.
func TestMergeKeys(t *testing.T) {
	const anchors = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\n"
	for _, c := range []struct{ text, want string }{
		{"z: {<<: *x}", "{a: 1, b: 1}"},
		{"z: {<<: *x, a: 3}", "{a: 3, b: 1}"},
		{"z: {a: 3, <<: *x}", "{a: 3, b: 1}"},
		{"z:\n  a: 3\n  <<: *x\n  d: 4", "{a: 3, b: 1, d: 4}"},
		{"z: {<<: [*x, *y]}", "{a: 1, b: 1, c: 2}"},
		{"z: {<<: [*y, *x], c: 3}", "{a: 1, b: 2, c: 3}"},
		{"z: {<<: [*y, {b: 9, e: 5}]}", "{b: 2, c: 2, e: 5}"},
		{"z: {<<: *x, <<: *y}", "{a: 1, b: 2, c: 2}"},
		{"w: &w {<<: *x, b: 5}\nz: {<<: *w, c: 6}", "{a: 1, b: 5, c: 6}"},
		{"z: [{<<: *x, a: 7}]", "[{a: 7, b: 1}]"},
		{"z: {a: null, <<: *x}", "{a: null, b: 1}"},
		{"z: {text: 'a << b <<: c <<<< m<<m0m', <<: *x}", "{text: 'a << b <<: c <<<< m<<m0m', a: 1, b: 1}"},
		{"z:\n  <<: *x\n  text: |\n    <<: *x\n", "{a: 1, b: 1, text: \"<<: *x\\n\"}"},
		{"z: {1<<2: {<<: *x}}", "{1<<2: {a: 1, b: 1}}"},
	} {
		var want struct{ Z any }
		if err := yaml.UnmarshalStrict([]byte("z: "+c.want), &want); err != nil {
			t.Fatal(err)
		}
		doc := Chunk{Text: []byte(anchors + c.text), Line: 1}
		tree, err := NewStream([]Chunk{doc}).Next(doc)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
		} else if got := tree.(map[any]any)["z"]; !reflect.DeepEqual(got, want.Z) {
			t.Errorf("%s: %v, want %v", c.text, got, want.Z)
		}
	}
	for _, c := range []struct{ text, want string }{
		{"z: {a: 1, a: 2, <<: *x}", "already set"},
		{"z: {<<: 1}", "should be a mapping"},
		{"z: {<<: [*x, 1]}", "should be a mapping"},
		{"z: {<<: null}", "should be a mapping"},
		{"\nz: {<<: *x}\nq: [", "line 5"},
		{"z: {<<: *nobody}", "unknown anchor"},
	} {
		doc := Chunk{Text: []byte(anchors + c.text), Line: 1}
		if _, err := NewStream([]Chunk{doc}).Next(doc); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.text, err, c.want)
		}
	}
}

// FuzzMerge wants of a document without a merge key what the parser makes of it alone, and never a panic.
func FuzzMerge(f *testing.F) {
	f.Add("a: &a {b: 1}\nc: {<<: *a, b: 2, d: '<<m0m'}")
	f.Add("<<: [{a: 1}, {a: 2}]\n? <<\n: {b: 1}")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseMerging([]byte(text))
		if strings.Contains(text, "<<") {
			return
		}
		var want any
		wantErr := yaml.UnmarshalStrict([]byte(text), &want)
		if (err == nil) != (wantErr == nil) || err == nil && fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
			t.Errorf("%q: %#v, %v, alone %#v, %v", text, got, err, want, wantErr)
		}
	})
}
