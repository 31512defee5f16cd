package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// A function fits a screen, a file one reading.
	maxFunctionLines = 60
	maxFileLines     = 400
)

// forbiddenCall is a function of the standard library that this code has another way for.
type forbiddenCall struct {
	pkg, name string
	inCmd     bool // allowed in programs: cmd/ and demo/
	instead   string
}

var forbiddenCalls = []forbiddenCall{
	{"os", "Getenv", true, "main reads the world, packages receive values"},
	{"os", "LookupEnv", true, "main reads the world, packages receive values"},
	{"os", "Environ", true, "main reads the world, packages receive values"},
	{"os", "Exit", true, "return an error to main"},
	// The type log.Logger is wanted by net/http; its functions write past log/slog.
	{"log", "Print", false, "log/slog"},
	{"log", "Printf", false, "log/slog"},
	{"log", "Println", false, "log/slog"},
	{"log", "Fatal", false, "return an error to main"},
	{"log", "Fatalf", false, "return an error to main"},
	{"time", "Sleep", false, "wait for the event, or for a timer in a select with the context"},
}

var forbiddenImports = map[string]string{
	"text/template": "typed values, marshalled",
	"html/template": "typed values, marshalled",
}

// sourceFile is one file that the release is built from.
type sourceFile struct {
	pkg  goPackage
	name string // from the root
	set  *token.FileSet
	tree *ast.File
}

func (f sourceFile) line(p token.Pos) int { return f.set.Position(p).Line }

func (f sourceFile) lines() int { return f.line(f.tree.FileEnd) }

// sourceFiles parses every file of the release: neither tests nor what only measures.
func sourceFiles(t *testing.T) []sourceFile {
	t.Helper()
	var files []sourceFile
	for _, p := range listPackages(t) {
		if within(p.short(), "tests") || within(p.short(), "bench") {
			continue
		}
		for _, base := range p.GoFiles {
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, filepath.Join(p.Dir, base), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if !ast.IsGenerated(tree) {
				files = append(files, sourceFile{pkg: p, name: p.short() + "/" + base, set: set, tree: tree})
			}
		}
	}
	if len(files) == 0 {
		t.Fatal("no source files: the check would check nothing")
	}
	return files
}

// shippedSources is the text of the release below some directories, in which what it says and counts is looked for.
func shippedSources(t *testing.T, roots ...string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range sourceFiles(t) {
		if withinAny(f.pkg.short(), roots) {
			all.WriteString(readRepoFile(t, f.name))
		}
	}
	return all.String()
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	for _, f := range sourceFiles(t) {
		if lines := f.lines(); lines > maxFileLines {
			t.Errorf("%s: %d lines, more than %d", f.name, lines, maxFileLines)
		}
		for _, declaration := range f.tree.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := f.line(function.End()) - f.line(function.Pos()) + 1; lines > maxFunctionLines {
				t.Errorf("%s:%d: %s has %d lines, more than %d", f.name, f.line(function.Pos()), function.Name.Name, lines, maxFunctionLines)
			}
			if function.Recv == nil && function.Name.Name == "init" {
				t.Errorf("%s:%d: func init: what starts is started by main", f.name, f.line(function.Pos()))
			}
		}
	}
}

// TestNamesOfValuesAreBounded wants no String method that indexes an array without a condition: a value may be newer than
// the array, or come from another release, and what names it in an error must not panic.
func TestNamesOfValuesAreBounded(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for _, declaration := range f.tree.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok || function.Name.Name != "String" || function.Recv == nil {
				continue
			}
			var index, condition bool
			ast.Inspect(function, func(n ast.Node) bool {
				switch n.(type) {
				case *ast.IndexExpr:
					index = true
				case *ast.IfStmt, *ast.RangeStmt:
					condition = true
				}
				return true
			})
			if index && !condition {
				t.Errorf("%s:%d: String indexes without asking whether the value is in bounds", f.name, f.line(function.Pos()))
			}
		}
	}
}

func TestNoForbiddenCalls(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for _, spec := range f.tree.Imports {
			if instead, bad := forbiddenImports[strings.Trim(spec.Path.Value, `"`)]; bad {
				t.Errorf("%s:%d: imports %s: use %s", f.name, f.line(spec.Pos()), spec.Path.Value, instead)
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok {
				checkCall(t, f, selector)
			}
			return true
		})
	}
}

func checkCall(t *testing.T, f sourceFile, selector *ast.SelectorExpr) {
	t.Helper()
	qualifier, ok := selector.X.(*ast.Ident)
	if !ok {
		return
	}
	for _, c := range forbiddenCalls {
		if qualifier.Name != c.pkg || selector.Sel.Name != c.name || c.inCmd && withinAny(f.pkg.short(), []string{"cmd", "demo", "build/images"}) {
			continue
		}
		t.Errorf("%s:%d: %s.%s: %s", f.name, f.line(selector.Pos()), c.pkg, c.name, c.instead)
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for _, declaration := range f.tree.Decls {
			for _, name := range undocumented(declaration) {
				t.Errorf("%s:%d: exported %s has no comment", f.name, f.line(name.Pos()), name.Name)
			}
		}
	}
}

// undocumented is the exported names that a declaration makes without saying anything about them.
// A comment on a group counts for its constants and variables; a type speaks for itself.
func undocumented(declaration ast.Decl) []*ast.Ident {
	switch d := declaration.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnownMethod(d) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var names []*ast.Ident
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						names = append(names, name)
					}
				}
			}
		}
		return names
	}
	return nil
}

// wellKnownMethod reports a method whose meaning the standard library's interfaces give.
func wellKnownMethod(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return false
	}
	switch d.Name.Name {
	case "String", "Error", "Unwrap", "ServeHTTP", "Describe", "Collect", "Enabled", "Handle", "WithAttrs", "WithGroup":
		return true
	}
	return false
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	receiver := d.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if generic, ok := receiver.(*ast.IndexExpr); ok {
		receiver = generic.X
	}
	name, ok := receiver.(*ast.Ident)
	return ok && name.IsExported()
}
