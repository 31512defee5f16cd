package tests

import (
	"testing"
)

const (
	// A package is one sitting to read.
	maxPackageFiles, maxPackageLines = 20, 3000
	// maxShippedLines is what an agent may take that does all that this one does, tests aside; a new part has a new bound.
	maxShippedLines = 86_000
)

// shippedRooms hold the code of the release; the rest shows, measures and tests it.
var shippedRooms = []string{"cmd", "pkg", "iptables", "dnsproxy", "hotrestart", "bootstrap", "internal"}

func shipped(short string) bool { return withinAny(short, shippedRooms) }

func TestPackagesAreSmall(t *testing.T) {
	type size struct{ files, lines int }
	sizes, total := map[string]size{}, 0
	for _, f := range sourceFiles(t) {
		if short := f.pkg.short(); shipped(short) {
			sizes[short] = size{sizes[short].files + 1, sizes[short].lines + f.lines()}
			total += f.lines()
		}
	}
	for short, has := range sizes {
		if has.files > maxPackageFiles || has.lines > maxPackageLines {
			t.Errorf("%s: %d files with %d lines, more than %d with %d: cut it where its parts talk to each other least",
				short, has.files, has.lines, maxPackageFiles, maxPackageLines)
		}
	}
	if total > maxShippedLines {
		t.Errorf("%d lines of code without tests, more than %d: what is no longer needed?", total, maxShippedLines)
	}
	t.Logf("%d lines in %d packages", total, len(sizes))
}
