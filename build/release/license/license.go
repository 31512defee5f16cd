// Package license owns what the licences of linked modules ask for: that each is known and one that may be shipped,
// and that its text and its notices go with the binaries.
package license

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"

	"understudy.mesh/build/release/linked"
)

// minCoverage is how much of a licence's file, in percent, must be text of a known licence; pkg.go.dev asks for as
// much before it shows a module's documentation. The rest is names, years and headings.
const minCoverage = 75

// allowed are the licences, by SPDX identifier, under which a module may be linked into what is shipped: those that
// ask for no more than their text, their notices and, for the MPL, the place of the unchanged source.
var allowed = []string{"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MPL-2.0", "Unlicense", "Zlib"}

var (
	licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-._].*)?$`)
	// That of a module's documentation: none of it is in a binary.
	docsFile   = regexp.MustCompile(`(?i)^licen[cs]e[-._]docs?([-._].*)?$`)
	noticeFile = regexp.MustCompile(`(?i)^notice([-._].*)?$`)
	// The grant of patents that goes with the licence of Go's own modules.
	patentsFile = regexp.MustCompile(`^PATENTS$`)
)

// Text is one file of a module.
type Text struct {
	// Name is its path in the module, with slashes.
	Name    string
	Content []byte
}

// Module is a linked module and the conditions that come with it.
type Module struct {
	linked.Module
	// Licenses are SPDX identifiers, in order.
	Licenses []string
	// Texts are the licences; Notices are what must be repeated besides (Apache-2.0, section 4 (d)).
	Texts, Notices []Text
}

// Expression is the SPDX expression of the module's licences: all of them hold.
func (m Module) Expression() string { return strings.Join(m.Licenses, " AND ") }

// Find reads the licences of a module from its directory: those at its root, and those on the way to each of the
// linked packages, which are named by their paths within the module.
func Find(m linked.Module, dir string, packages []string) (Module, error) {
	found := Module{Module: m}
	for _, inner := range directories(packages) {
		if err := found.read(dir, inner); err != nil {
			return Module{}, fmt.Errorf("licence of module %s %s: %w", m.Path, m.Version, err)
		}
	}
	if len(found.Licenses) == 0 {
		return Module{}, fmt.Errorf("licence of module %s %s: no file LICENSE or COPYING in %s: nobody may ship it; link another module", m.Path, m.Version, dir)
	}
	slices.Sort(found.Licenses)
	found.Licenses = slices.Compact(found.Licenses)
	return found, nil
}

// directories are those of packages and all above them, "." first.
func directories(packages []string) []string {
	all := []string{"."}
	for _, p := range packages {
		for ; p != "." && p != ""; p = path.Dir(p) {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// read adds the licences and notices of one directory of the module.
func (m *Module) read(dir, inner string) error {
	entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(inner)))
	if err != nil {
		return fmt.Errorf("look for it: %w", err)
	}
	for _, entry := range entries {
		if path.Ext(entry.Name()) == ".go" || !entry.Type().IsRegular() {
			continue
		}
		if err := m.take(dir, path.Join(inner, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// take adds a file of the module, if it is one of those that are looked for.
func (m *Module) take(dir, name string) error {
	base := path.Base(name)
	isLicense, isNotice := licenseFile.MatchString(base) && !docsFile.MatchString(base), noticeFile.MatchString(base)
	if !isLicense && !isNotice && !patentsFile.MatchString(base) {
		return nil
	}
	content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	text := Text{Name: name, Content: content}
	if isNotice {
		m.Notices = append(m.Notices, text)
		return nil
	}
	m.Texts = append(m.Texts, text)
	if !isLicense {
		return nil
	}
	names, err := recognize(text)
	m.Licenses = append(m.Licenses, names...)
	return err
}

// recognize returns the SPDX identifiers of the licences that a text is, and fails for one that is unknown or not allowed.
func recognize(text Text) ([]string, error) {
	coverage := licensecheck.Scan(text.Content)
	var names []string
	for _, match := range coverage.Match {
		if !slices.Contains(names, match.ID) {
			names = append(names, match.ID)
		}
	}
	if len(names) == 0 || coverage.Percent < minCoverage {
		return nil, fmt.Errorf("%s: unknown: %.0f %% of it is text of a known licence %q, less than %d: read it, and link another module if it is not as free as %q",
			text.Name, coverage.Percent, names, minCoverage, allowed)
	}
	for _, name := range names {
		if !slices.Contains(allowed, name) {
			return nil, fmt.Errorf("%s: %s is not among the licences that may be shipped, %q: link another module", text.Name, name, allowed)
		}
	}
	return names, nil
}
