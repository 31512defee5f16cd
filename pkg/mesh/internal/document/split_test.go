package document

import "testing"

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		lines      []int
	}{
		{"empty", "", nil, nil},
		{"comments", "# a\n---\n# b\n---\n", nil, nil},
		{"one", "a: b\n", []string{"a: b\n"}, []int{1}},
		{"leading marker", "---\na: b", []string{"\na: b"}, []int{1}},
		{"two", "a: b\n---\nc: d\n", []string{"a: b\n", "\nc: d\n"}, []int{1, 2}},
		{"CRLF", "a: b\r\n---\r\nc: d\r\n", []string{"a: b\r\n", "\r\nc: d\r\n"}, []int{1, 2}},
		{"text after the marker", "--- {a: b}\n", []string{" {a: b}\n"}, []int{1}},
		{"no marker", "a: b\n----\n--- x", []string{"a: b\n----\n", " x"}, []int{1, 3}},
		{"indented", "a: |\n  ---\n  b\n", []string{"a: |\n  ---\n  b\n"}, []int{1}},
		{"end marker", "a: b\n...\nc: d\n", []string{"a: b\n", "c: d\n"}, []int{1, 3}},
		{"byte order mark", "\xef\xbb\xbfa: b", []string{"a: b"}, []int{1}},
		{"directive", "%YAML 1.1\n---\na: b\n", []string{"\na: b\n"}, []int{2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Split([]byte(c.text))
			if len(got) != len(c.want) {
				t.Fatalf("%d documents, want %d: %v", len(got), len(c.want), got)
			}
			for i, g := range got {
				if string(g.Text) != c.want[i] || g.Line != c.lines[i] {
					t.Errorf("document %d: line %d %q, want line %d %q", i, g.Line, g.Text, c.lines[i], c.want[i])
				}
			}
		})
	}
}
