package tests

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

// An exported identifier is a promise to other packages. One that no other package uses, tests aside, is
// unexported, moved to where it is used, or deleted.
//
// What counts as a use of
//   - a function, variable, constant or type: its name in another package. A type is also used where what is used
//     has it in its signature or in a field with a tag, and where another package uses one of its methods or fields: New's result needs no name.
//     An enumeration is one thing: its constants are used when one of them is;
//   - a method: a call from another package, or an interface that the type satisfies by it;
//   - a field: its name in another package, a promotion through it, a conversion of its struct, or a tag, since then
//     an encoder uses it.

// setByName are structs whose fields are set by reflection: a table has their names.
var setByName = []string{"pkg/config.Config"}

func TestExportedNamesHaveUsers(t *testing.T) {
	module := loadModule(t)
	for _, e := range module.unusedExports() {
		t.Errorf("%s: exported, and no other package uses it", e)
	}
}

// module is the code of the release with its types, and of what measures and shows it.
type module struct {
	root     string
	packages []*packages.Package
	// users are, for each exported object, that another package uses it.
	used map[types.Object]bool
	// interfaces are all that a method may be there for.
	interfaces []*types.Interface
}

// loadModule type-checks the module without its tests, and finds who uses what.
func loadModule(t *testing.T) *module {
	t.Helper()
	m := &module{root: repoRoot(t), used: map[types.Object]bool{}}
	loaded, err := packages.Load(&packages.Config{
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes |
			packages.NeedTypesInfo | packages.NeedImports,
		Dir:        m.root,
		BuildFlags: []string{"-tags=vtprotobuf,grpcnotrace"},
	}, "./...")
	if err != nil {
		t.Fatalf("load the module: %v", err)
	}
	for _, pkg := range loaded {
		if len(pkg.Errors) > 0 {
			t.Fatalf("load the module: %v", pkg.Errors)
		}
		if !within(shortOf(pkg), "tests") {
			m.packages = append(m.packages, pkg)
		}
	}
	for _, pkg := range m.packages {
		m.noteUses(pkg)
		m.noteInterfaces(pkg)
	}
	m.noteEnumerations()
	m.noteSignatures()
	return m
}

func shortOf(pkg *packages.Package) string { return strings.TrimPrefix(pkg.PkgPath, modulePath+"/") }

// use notes that pkg uses an object, if that is another package's.
func (m *module) use(pkg *packages.Package, object types.Object) {
	if object.Pkg() != nil && object.Pkg() != pkg.Types && strings.HasPrefix(object.Pkg().Path(), modulePath+"/") {
		m.used[origin(object)] = true
	}
}

// origin is the declared object of one of a generic type's instances.
func origin(object types.Object) types.Object {
	switch o := object.(type) {
	case *types.Func:
		return o.Origin()
	case *types.Var:
		return o.Origin()
	}
	return object
}

func (m *module) noteUses(pkg *packages.Package) {
	for _, object := range pkg.TypesInfo.Uses {
		m.use(pkg, object)
	}
	for _, s := range pkg.TypesInfo.Selections {
		// Each field on the way is used, not only the last: it was embedded for that.
		at := s.Recv()
		for _, i := range s.Index()[:len(s.Index())-1] {
			field := structOf(at).Field(i)
			m.use(pkg, field)
			at = field.Type()
		}
	}
	for _, file := range pkg.Syntax {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit: // the keys of one that has them are uses
				if len(n.Elts) > 0 && !is[*ast.KeyValueExpr](n.Elts[0]) {
					m.useFields(pkg, pkg.TypesInfo.TypeOf(n))
				}
			case *ast.CallExpr:
				if pkg.TypesInfo.Types[n.Fun].IsType() {
					m.useFields(pkg, pkg.TypesInfo.TypeOf(n))
					m.useFields(pkg, pkg.TypesInfo.TypeOf(n.Args[0]))
				}
			}
			return true
		})
	}
}

func is[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

// useFields notes that pkg uses every field of a struct.
func (m *module) useFields(pkg *packages.Package, t types.Type) {
	if s := structOf(t); s != nil {
		for field := range s.Fields() {
			m.use(pkg, field)
		}
	}
}

// structOf is the struct that a type is or points to; nil: it is none.
func structOf(t types.Type) *types.Struct {
	if pointer, ok := t.Underlying().(*types.Pointer); ok {
		t = pointer.Elem()
	}
	s, _ := t.Underlying().(*types.Struct)
	return s
}

// noteInterfaces adds those that a package writes, and those that the packages have that it imports.
func (m *module) noteInterfaces(pkg *packages.Package) {
	add := func(t types.Type) {
		if i, ok := t.Underlying().(*types.Interface); ok && i.NumMethods() > 0 && i.IsMethodSet() {
			m.interfaces = append(m.interfaces, i)
		}
	}
	for _, value := range pkg.TypesInfo.Types {
		if value.IsType() {
			add(value.Type)
		}
	}
	for _, scope := range append(pkg.Types.Imports(), pkg.Types) {
		for _, name := range scope.Scope().Names() {
			if named, ok := scope.Scope().Lookup(name).(*types.TypeName); ok {
				add(named.Type())
			}
		}
	}
	add(types.Universe.Lookup("error").Type())
}

// noteEnumerations uses all constants of a type of which one is used.
func (m *module) noteEnumerations() {
	used := map[types.Type]bool{}
	for object := range m.used {
		if is[*types.Const](object) && is[*types.Named](object.Type()) {
			used[object.Type()] = true
		}
	}
	for _, pkg := range m.packages {
		for _, name := range pkg.Types.Scope().Names() {
			if object := pkg.Types.Scope().Lookup(name); is[*types.Const](object) && used[object.Type()] {
				m.used[object] = true
			}
		}
	}
}

// noteSignatures uses the types that what is used is made of, until no more are found.
func (m *module) noteSignatures() {
	for queue := slices.Collect(maps.Keys(m.used)); len(queue) > 0; {
		object := queue[0]
		queue = queue[1:]
		for _, found := range namedIn(object) {
			if !m.used[found] {
				m.used[found] = true
				queue = append(queue, found)
			}
		}
	}
}

// namedIn are the types that the type of an object names, and the one that it is a method of.
func namedIn(object types.Object) (found []types.Object) {
	seen := map[types.Type]bool{}
	var walk func(t types.Type)
	tuple := func(vars *types.Tuple) {
		for v := range vars.Variables() {
			walk(v.Type())
		}
	}
	walk = func(t types.Type) {
		if seen[t] {
			return
		}
		seen[t] = true
		switch t := t.(type) {
		case *types.Named:
			found = append(found, t.Origin().Obj())
			for argument := range t.TypeArgs().Types() {
				walk(argument)
			}
		case *types.Map:
			walk(t.Key())
			walk(t.Elem())
		case interface{ Elem() types.Type }: // pointer, slice, array, channel
			walk(t.Elem())
		case *types.Signature:
			tuple(t.Params())
			tuple(t.Results())
		case *types.Struct:
			for i := range t.NumFields() {
				if t.Tag(i) != "" {
					walk(t.Field(i).Type())
				}
			}
		}
	}
	t := object.Type()
	if _, isType := object.(*types.TypeName); isType {
		t = t.Underlying()
	}
	walk(t)
	if signature, ok := t.(*types.Signature); ok && signature.Recv() != nil {
		walk(signature.Recv().Type())
	}
	return found
}

// export is an exported identifier of a package, a field or method with its type.
type export struct {
	pkg, name string
	position  token.Position
}

func (e export) String() string {
	return fmt.Sprintf("%s/%s:%d %s", e.pkg, filepath.Base(e.position.Filename), e.position.Line, e.name)
}

// unusedExports are those of the packages of the release, in order.
func (m *module) unusedExports() (unused []export) {
	for _, pkg := range m.packages {
		if !shipped(shortOf(pkg)) {
			continue
		}
		note := func(object types.Object, name string) {
			if object.Exported() && !m.used[object] {
				unused = append(unused, export{shortOf(pkg), name, pkg.Fset.Position(object.Pos())})
			}
		}
		scope := pkg.Types.Scope()
		for _, name := range scope.Names() {
			object := scope.Lookup(name)
			if named, ok := object.(*types.TypeName); ok {
				m.eachMember(named, func(member types.Object) { note(member, name+"."+member.Name()) })
			}
			note(object, name)
		}
	}
	return unused
}

// eachMember calls note with every method and field of an exported type that has to have a user.
func (m *module) eachMember(named *types.TypeName, note func(types.Object)) {
	if !named.Exported() || named.IsAlias() {
		return
	}
	t, ok := named.Type().(*types.Named)
	if !ok {
		return
	}
	for method := range t.Methods() {
		if !m.satisfies(t, method) {
			note(method)
		}
	}
	s, ok := t.Underlying().(*types.Struct)
	if !ok || slices.Contains(setByName, strings.TrimPrefix(named.Pkg().Path(), modulePath+"/")+"."+named.Name()) {
		return
	}
	for i := range s.NumFields() {
		if s.Tag(i) == "" && !s.Field(i).Embedded() {
			note(s.Field(i))
		}
	}
}

// satisfies reports whether a type has a method for an interface, or for package errors, which asks for it by name.
func (m *module) satisfies(t *types.Named, method *types.Func) bool {
	switch method.Name() {
	case "Unwrap", "Is", "As":
		return true
	}
	pointer := types.NewPointer(t)
	return slices.ContainsFunc(m.interfaces, func(i *types.Interface) bool {
		for wanted := range i.Methods() {
			if wanted.Name() == method.Name() {
				return types.Implements(pointer, i)
			}
		}
		return false
	})
}
