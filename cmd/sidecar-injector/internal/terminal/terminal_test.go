package terminal

import (
	"bytes"
	"os"
	"testing"
)

func TestIs(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if Is(file) || Is(new(bytes.Buffer)) {
		t.Error("a file or a buffer counts as a terminal")
	}
}

func FuzzPrintable(f *testing.F) {
	for _, text := range []string{"", "ä b", "a\nb", "\x1b[2J", "\u009b31m", "\u202e", "\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range Printable(text) {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' {
				t.Errorf("%q has %q", Printable(text), r)
			}
		}
	})
}
