package config

import (
	"go/ast"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

// TestEveryFieldIsRead fails for a field of Config that no code reads: a setting that
// is accepted must have an effect, or be in the table as one that has none. Reading
// counts outside this package, and in the files that derive the node's identity.
func TestEveryFieldIsRead(t *testing.T) {
	read := map[string]bool{}
	for _, pkg := range loadModule(t) {
		for _, file := range pkg.Syntax {
			if readsConfig(pkg, pkg.Fset.Position(file.Pos()).Filename) {
				noteReads(pkg.TypesInfo, file, read)
			}
		}
	}
	if !read["PodNamespace"] {
		t.Fatal("the search finds no field at all, not even one that derive.go reads")
	}
	var unread []string
	for _, s := range Settings() {
		if s.field != "" && !read[s.field] {
			unread = append(unread, s.name+" (Config."+s.field+")")
		}
	}
	if len(unread) > 0 {
		t.Errorf("%d settings are accepted and nothing reads them; use the field, or move the row to acceptedSettings with the reason why it has no effect:\n\t%s",
			len(unread), strings.Join(unread, "\n\t"))
	}
}

// loadModule type-checks every package of this module, without tests.
func loadModule(t *testing.T) []*packages.Package {
	t.Helper()
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes |
			packages.NeedTypesInfo | packages.NeedImports,
		Dir:        "../..",
		BuildFlags: []string{"-tags=vtprotobuf,grpcnotrace"},
	}, "./...")
	if err != nil {
		t.Fatalf("load the module: %v", err)
	}
	return pkgs
}

func readsConfig(pkg *packages.Package, file string) bool {
	if !strings.HasSuffix(pkg.PkgPath, "/pkg/config") {
		return true
	}
	return slices.Contains([]string{"derive.go", "node.go", "metadata.go", "proxyconfig.go", "services.go", "platform.go"}, filepath.Base(file))
}

// noteReads adds the fields of Config that a file selects other than to assign them.
func noteReads(info *types.Info, file *ast.File, read map[string]bool) {
	assigned := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, target := range n.Lhs {
				assigned[target] = true
			}
		case *ast.SelectorExpr:
			s, ok := info.Selections[n]
			if ok && s.Kind() == types.FieldVal && !assigned[n] && isConfig(s.Recv()) {
				read[n.Sel.Name] = true
			}
		}
		return true
	})
}

func isConfig(t types.Type) bool {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	named, ok := t.(*types.Named)
	return ok && named.Obj().Name() == "Config" && named.Obj().Pkg() != nil &&
		strings.HasSuffix(named.Obj().Pkg().Path(), "/pkg/config")
}
