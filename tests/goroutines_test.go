package tests

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const goroutinesPage = "docs/goroutines.md"

// goroutineRow is a heading, a package with those below it, or a row: | `function` | what it runs | who joins it |.
var goroutineRow = regexp.MustCompile("(?m)^(?:## `([^`]+)`|\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\|)$")

// TestGoroutinesAreOnThePage demands a row of docs/goroutines.md for every function of the release that starts a
// goroutine, and no row for one that does not.
func TestGoroutinesAreOnThePage(t *testing.T) {
	type row struct{ room, function string }
	rows := map[row]bool{} // whether a function has it
	room := ""
	for _, match := range goroutineRow.FindAllStringSubmatch(readRepoFile(t, goroutinesPage), -1) {
		if match[1] != "" {
			room = match[1]
		} else {
			rows[row{room, match[2]}] = false
		}
	}
	for _, f := range sourceFiles(t) {
		for _, declaration := range f.tree.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok || !shipped(f.pkg.short()) || !startsGoroutine(function) {
				continue
			}
			found := false
			for r := range rows {
				if within(f.pkg.short(), r.room) && r.function == functionName(function) {
					rows[r], found = true, true
				}
			}
			if !found {
				t.Errorf("%s:%d: %s starts a goroutine, and %s does not say who joins it",
					f.name, f.line(function.Pos()), functionName(function), goroutinesPage)
			}
		}
	}
	for r, has := range rows {
		if !has {
			t.Errorf("%s has a row for %s of %s, which starts no goroutine", goroutinesPage, r.function, r.room)
		}
	}
}

// startsGoroutine reports whether a function has a go statement, or calls what stands for one.
func startsGoroutine(function *ast.FuncDecl) (starts bool) {
	ast.Inspect(function, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			starts = true
		case *ast.CallExpr:
			if selector, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains(starters, selector.Sel.Name) {
				starts = true
			}
		}
		return !starts
	})
	return starts
}

// starters are methods that run a function on a goroutine: those of sync.WaitGroup and errgroup.Group.
var starters = []string{"Go", "TryGo"}

// functionName is "Type.Method", or a function's name.
func functionName(function *ast.FuncDecl) string {
	name := function.Name.Name
	if function.Recv == nil {
		return name
	}
	receiver := ""
	ast.Inspect(function.Recv.List[0].Type, func(n ast.Node) bool {
		if ident, ok := n.(*ast.Ident); ok && receiver == "" {
			receiver = ident.Name
		}
		return true
	})
	return strings.TrimPrefix(receiver+"."+name, ".")
}
