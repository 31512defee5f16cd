package skim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	kjson "sigs.k8s.io/json"
)

// thing has all that a shape tells apart.
type thing struct {
	Name  string            `json:"name"`
	Count *int64            `json:"count,omitempty"`
	Many  []thing2          `json:"many"`
	One   *thing2           `json:"one"`
	Any   any               `json:"any"`
	Map   map[string]thing2 `json:"map"`
	Words []string          `json:"words"`
	Own   json.RawMessage   `json:"own"`
	None  *struct{}         `json:"none"`
	Lost  string            `json:"-"`
	//lint:ignore U1000 a field without a tag
	inner map[string]*thing2
}

type thing2 struct {
	A int    `json:"a"`
	B string `json:"b"`
}

var (
	thingShape = Of(reflect.TypeFor[thing]())
	outerShape = (&Shape{}).With("thing", thingShape).With("out", Cut)
)

func TestSkim(t *testing.T) {
	tests := []struct{ text, kept, cut string }{
		{` { "name" : "n" , "x":[1,{"name":2}], "many":[ {"a":1,"c":2} , null, {} ] } `, `{"name":"n","many":[{"a":1},null,{}]}`, ""},
		{`{"x":1}`, `{}`, ""},
		{`{"x":1,"name":"a","y":2,"name":"b"}`, `{"name":"a","name":"b"}`, ""},
		{`{"one":[{"c":1}],"many":{"c":1},"map":{"c":{"c":1}}}`, `{"one":[{"c":1}],"many":{"c":1},"map":{"c":{"c":1}}}`, ""},
		{`{"none":{"a":{"b":-1.5e+3}},"Name":"n","count":1,"any":{"x": 1}}`, `{"none":{},"count":1,"any":{"x": 1}}`, ""},
		{`[1]`, `[1]`, ""},
		{`null`, `null`, ""},
	}
	for _, tt := range tests {
		if kept, cut, ok := thingShape.Skim([]byte(tt.text)); !ok || string(kept) != tt.kept || cut != nil {
			t.Errorf("%s: kept %s, cut %s, ok %v; want %s", tt.text, kept, cut, ok, tt.kept)
		}
	}
	kept, cut, ok := outerShape.Skim([]byte(`{"out": {"any": [1]} ,"thing":{"name":"a","x":""}}`))
	if want, wantCut := `{"out":null,"thing":{"name":"a"}}`, `{"any": [1]}`; !ok || string(kept) != want || string(cut) != wantCut {
		t.Errorf("kept %s, cut %s, ok %v; want %s, %s", kept, cut, ok, want, wantCut)
	}
}

// TestNotSkimmed: what is left to a decoder.
func TestNotSkimmed(t *testing.T) {
	for _, text := range []string{
		``, ` `, `{`, `{"name"`, `{"name":`, `{"x":1,}`, `{,}`, `[1,]`, `{"x" 1}`, `{x:1}`, `{"x":01}`, `{"x":1.}`, `{"x":-}`, `{"x":+1}`, `{"x":1e}`, `{"x":.5}`,
		`{"x":"a`, `{"x":"\x"}`, `{"x":"\u12g4"}`, "{\"x\":\"a\nb\"}", "{\"x\":\"\x00\"}", `{"x":tru}`, `{"x":nul`, `{} {}`, `{}x`, "\ufeff{}", `{"x":[}`,
		`{"n\u0061me":"n"}`, `{"out":1,"out":2}`, strings.Repeat(`[`, 2*deepest) + strings.Repeat(`]`, 2*deepest),
	} {
		if kept, _, ok := outerShape.Skim([]byte(text)); ok {
			t.Errorf("%.100s: kept %s", text, kept)
		}
	}
}

// FuzzSkim holds that a decoder makes the same of what is kept, and that the cut value is the one that it would have seen.
func FuzzSkim(f *testing.F) {
	for _, seed := range []string{
		`{"thing":{"name":"n","count":12345678901,"many":[{"a":1,"c":[{}]},null],"one":{"b":"\u00e9\ud800"},"map":{"k":{"a":1,"a":2}},"words":["a"],"none":{"x":1}},"out":{"x":[1]}}`,
		`{"thing":{"one":{"a":1},"one":{"b":"x"},"x":"` + strings.Repeat("long ", 20) + `"},"Out":1,"thing":null,"thing":{"name":1}}`,
		"{\"thing\":{\"name\":\"\xff\",\"\xffname\":1}}", `{"out":null,"y":-0.5E-7,"z":[ ],"w":{ }}`, `[]`, `{"n\u0061me":1}`,
	} {
		f.Add([]byte(seed))
	}
	type outer struct {
		Thing *thing `json:"thing"`
		Out   any    `json:"out"`
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		kept, cut, ok := outerShape.Skim(text)
		if !ok {
			return
		}
		if !json.Valid(text) {
			t.Fatalf("no JSON: %q", text)
		}
		var whole, part outer
		err, err2 := kjson.UnmarshalCaseSensitivePreserveInts(text, &whole), kjson.UnmarshalCaseSensitivePreserveInts(kept, &part)
		if fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("%v, of what is kept %v", err, err2)
		}
		if err == nil && cut != nil {
			if err := kjson.UnmarshalCaseSensitivePreserveInts(cut, &part.Out); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(whole, part, cmp.AllowUnexported(thing{})); err == nil && diff != "" {
			t.Fatalf("%s of %q", diff, kept)
		}
	})
}

// BenchmarkSkim passes over a text of which nearly all is left out.
func BenchmarkSkim(b *testing.B) {
	var text bytes.Buffer
	text.WriteString(`{"name":"a","env":[`)
	for i := range 1000 {
		fmt.Fprintf(&text, `{"name":"VARIABLE_NUMBER_%d","value":"some value of the usual length %d"},`, i, i)
	}
	text.WriteString(`null]}`)
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := thingShape.Skim(text.Bytes()); !ok {
			b.Fatal("not read")
		}
	}
}
