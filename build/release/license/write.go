package license

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Product is what the papers are about.
type Product struct {
	// License is the text of its own licence.
	License []byte
	// Notice is what its NOTICE begins with.
	Notice string
}

// Write makes the papers that go with binaries, in a directory that must not exist: LICENSE, NOTICE, and
// licenses/MODULE@VERSION/ with the texts of each module.
func Write(dir string, product Product, modules []Module) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("write licences: %w", err)
	}
	modules = slices.SortedFunc(slices.Values(modules), func(a, b Module) int { return cmp.Compare(a.Path, b.Path) })
	files := []Text{{"LICENSE", product.License}, {"NOTICE", notice(product, modules)}}
	for _, m := range modules {
		for _, text := range slices.Concat(m.Texts, m.Notices) {
			files = append(files, Text{"licenses/" + m.Path + "@" + m.Version + "/" + text.Name, text.Content})
		}
	}
	for _, file := range files {
		name := filepath.Join(dir, filepath.FromSlash(file.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("write licences: %w", err)
		}
		if err := os.WriteFile(name, file.Content, 0o644); err != nil {
			return fmt.Errorf("write licences: %w", err)
		}
	}
	return nil
}

// notice says what is in the binaries under which licence, and repeats the modules' own notices.
func notice(product Product, modules []Module) []byte {
	var b bytes.Buffer
	b.WriteString(product.Notice)
	b.WriteString("\nThe binaries contain packages of these Go modules. Their licences are below licenses/; the unchanged\n" +
		"source of each is what `go mod download MODULE@VERSION` brings.\n\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "  %s %s (%s)\n", m.Path, m.Version, m.Expression())
	}
	for _, m := range modules {
		for _, text := range m.Notices {
			fmt.Fprintf(&b, "\n--- %s of %s %s\n\n%s\n", text.Name, m.Path, m.Version, bytes.TrimSpace(text.Content))
		}
	}
	return b.Bytes()
}
