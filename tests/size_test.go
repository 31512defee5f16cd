package tests

import (
	"testing"
)

const (
	// A package is one sitting to read.
	maxPackageFiles, maxPackageLines = 20, 3000
	// maxShippedLines is what an agent and an injector may take that do all that these do, tests aside.
	maxShippedLines = 43_500
)

// shippedRooms hold the code of the release; the rest shows, measures and tests it.
var shippedRooms = []string{"cmd", "pkg", "iptables", "dnsproxy", "hotrestart", "bootstrap", "internal"}

func shipped(short string) bool { return withinAny(short, shippedRooms) }

// largePackages are larger than a package may be, each with its own bounds. A row goes as soon as it can.
var largePackages = []struct {
	pkg          string
	files, lines int
}{
	{"dnsproxy", 48, 7800},
	{"pkg/agent", 36, 6600},
	{"pkg/mesh", 28, 4550},
}

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
		may := size{maxPackageFiles, maxPackageLines}
		for _, row := range largePackages {
			if row.pkg == short {
				may = size{max(row.files, may.files), max(row.lines, may.lines)}
			}
		}
		if has.files > may.files || has.lines > may.lines {
			t.Errorf("%s: %d files with %d lines, more than %d with %d: cut it where its parts talk to each other least",
				short, has.files, has.lines, may.files, may.lines)
		}
	}
	if total > maxShippedLines {
		t.Errorf("%d lines of code without tests, more than %d: what is no longer needed?", total, maxShippedLines)
	}
	t.Logf("%d lines in %d packages", total, len(sizes))
}
