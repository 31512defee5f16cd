package tests

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const modulePath = "understudy.mesh"

// goPackage is what we read of `go list -json`.
type goPackage struct {
	ImportPath, Name, Dir, Doc string
	GoFiles                    []string
	Imports, Deps              []string
	TestImports, XTestImports  []string
}

// short is the package's path inside the module: "pkg/mesh".
func (p goPackage) short() string { return strings.TrimPrefix(p.ImportPath, modulePath+"/") }

// listPackages is every package of the module, as the release is built.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	// -e: a package that does not build is the compiler's to report, and no reason to check none.
	cmd := exec.Command("go", "list", "-e", "-tags", "vtprotobuf", "-json=ImportPath,Name,Dir,Doc,GoFiles,Imports,Deps,TestImports,XTestImports", "./...")
	cmd.Dir = repoRoot(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.String())
	}
	var packages []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// layer says what the packages at a path may import. A prefix covers the paths below it.
type layer struct {
	path    string
	module  []string // of this module
	outside []string // of others', besides the standard library and everywhere
	tests   []string // of others', for its tests besides forTests
}

// everywhere may be imported by every package.
var everywhere = []string{"golang.org/x/sync", modulePath + "/internal/atomicfile", modulePath + "/internal/compliance", modulePath + "/internal/unixsock"}

// The types of Envoy's API, and what carries them.
var (
	envoyTypes = []string{"github.com/envoyproxy/go-control-plane", "google.golang.org/protobuf"}
	grpcTypes  = append([]string{"google.golang.org/grpc", "google.golang.org/genproto"}, envoyTypes...)
)

// layers: imports go one way, from cmd over pkg/agent to the rest. The first match counts; a package
// that none matches is an error, so that a new one states its place here.
var layers = []layer{
	{path: "cmd/sidecar-injector", module: []string{"pkg/asmfilter", "pkg/inject", "pkg/profile", "pkg/contract", "pkg/logging"},
		// go.yaml.in: trees of YAML, which keep comments and order when a file is injected. json-patch: the API server's.
		outside: []string{"github.com/spf13", "go.yaml.in/yaml", "github.com/prometheus", "k8s.io", "sigs.k8s.io"}, tests: []string{"gopkg.in/evanphx/json-patch.v4"}},
	{path: "cmd/pilot-agent-standby"},
	{path: "cmd", module: []string{"pkg", "iptables", "dnsproxy", "hotrestart", "bootstrap"},
		outside: []string{"github.com/spf13", "sigs.k8s.io/yaml", "golang.org/x/sys"}},
	{path: "pkg/agent", module: []string{"pkg", "iptables", "dnsproxy", "hotrestart", "bootstrap"},
		outside: []string{"golang.org/x/sys"},
		// grpc: for an Envoy that is none; dns and prometheus: a client, a server and a scrape; yaml: cases.
		tests: append([]string{"github.com/miekg/dns", "github.com/prometheus", "go.yaml.in/yaml"}, grpcTypes...)},

	// go-iptables: a second reader of the rules. The agent itself reads them by one iptables-save, where that
	// library runs iptables for the version, and again for each chain.
	{path: "iptables", outside: []string{"github.com/google/nftables", "github.com/vishvananda/netlink", "golang.org/x/sys"},
		tests: []string{"github.com/coreos/go-iptables"}},
	{path: "dnsproxy", module: []string{"pkg/journal"}, outside: []string{"github.com/miekg/dns", "github.com/hashicorp/golang-lru/v2", "golang.org/x/net", "golang.org/x/sys"}},
	{path: "hotrestart/envoy", module: []string{"hotrestart"}, outside: []string{"golang.org/x/sys", "google.golang.org/protobuf"}},
	{path: "hotrestart/handoff", module: []string{"hotrestart"}, outside: []string{"golang.org/x/sys"}},
	{path: "hotrestart", outside: []string{"golang.org/x/sys"}},
	// cncf/xds: the type of an extension that only Istio's Envoy has.
	{path: "bootstrap", outside: append([]string{"github.com/cncf/xds"}, envoyTypes...)},
	{path: "internal/atomicfile"},
	{path: "internal/compliance"},
	{path: "internal/grpcsock", outside: grpcTypes},
	{path: "internal/unixsock", outside: []string{"golang.org/x/sys"}},

	{path: "pkg/asmfilter", module: []string{"pkg/contract"}},
	// istio.io/api: MeshConfig and ProxyConfig are its messages.
	{path: "pkg/config", module: []string{"pkg/contract", "pkg/logging"}, outside: []string{"istio.io/api", "google.golang.org/protobuf", "go.yaml.in/yaml", "sigs.k8s.io/yaml"}},
	{path: "pkg/control", module: []string{"hotrestart", "pkg/contract"}, outside: []string{"golang.org/x/sys"}},
	{path: "pkg/ecds", module: []string{"pkg/asmfilter", "pkg/envoyfilter", "pkg/status", "pkg/wasm", "pkg/xds"}, outside: envoyTypes, tests: []string{"github.com/prometheus"}},
	{path: "pkg/envoy", module: []string{"hotrestart"}, outside: []string{"golang.org/x/sys"}},
	// protobuf: the wire format of what a successor is told.
	{path: "pkg/files", module: []string{"dnsproxy", "pkg/ecds", "pkg/envoyfilter", "pkg/mesh", "pkg/overview", "pkg/publish", "pkg/status", "pkg/xds"}, outside: []string{"google.golang.org/protobuf"}, tests: envoyTypes},
	{path: "pkg/contract"},
	{path: "pkg/inject", module: []string{"pkg/contract", "pkg/profile"}, outside: []string{"github.com/prometheus", "k8s.io", "sigs.k8s.io"}, tests: []string{"gopkg.in/evanphx/json-patch.v4"}},
	// protobuf: the wire format of istiod's table of names. istio.io/api: its roots are in a message of that.
	// internal/grpcsock: other xDS clients than Envoy are passed on to istiod.
	{path: "pkg/istiod", module: []string{"dnsproxy", "internal/grpcsock", "pkg/ecds", "pkg/overview", "pkg/publish", "pkg/status", "pkg/xds"}, outside: append([]string{"istio.io/api"}, grpcTypes...)},
	{path: "pkg/journal"},
	{path: "pkg/logging"},
	// istio.io/api: the document. cncf/xds: TypedStruct, which carries a message whose type is not linked.
	{path: "pkg/envoyfilter", outside: append([]string{"istio.io/api", "github.com/cncf/xds"}, envoyTypes...)},
	{path: "pkg/mesh/wasmplugin", module: []string{"pkg/envoyfilter", "pkg/mesh/internal/document", "pkg/wasm"}, outside: append([]string{"istio.io/api"}, envoyTypes...)},
	// x/sys: a file of the directory is opened so that a FIFO or a device cannot block.
	// go.yaml.in: the parser below sigs.k8s.io/yaml, without the way round JSON text.
	// dns: whom an Envoy asks.
	{path: "pkg/mesh", module: []string{"dnsproxy", "pkg/asmfilter", "pkg/envoyfilter", "pkg/xds"}, outside: append([]string{"istio.io/api", "go.yaml.in/yaml", "github.com/fsnotify/fsnotify", "golang.org/x/sys"}, grpcTypes...),
		tests: []string{"github.com/miekg/dns"}},
	{path: "pkg/overview", module: []string{"dnsproxy", "pkg/contract", "pkg/control"}},
	{path: "pkg/platform"},
	// istio.io/api: the names and types of a ProxyConfig. pkg/config/document: the same reader as the agent's.
	{path: "pkg/profile", module: []string{"pkg/contract", "pkg/logging", "pkg/config/document"}, outside: []string{"k8s.io", "sigs.k8s.io", "istio.io/api"}},
	{path: "pkg/publish", module: []string{"dnsproxy", "pkg/xds"}},
	// istio.io/api: the request for a certificate. fsnotify: certificates in files.
	{path: "pkg/security", module: []string{"internal/grpcsock", "pkg/overview", "pkg/status"}, outside: append([]string{"istio.io/api", "github.com/fsnotify/fsnotify"}, grpcTypes...)},
	// grpc: the health check of an application's gRPC probe. compress: zstd, which the standard library lacks.
	{path: "pkg/status", module: []string{"pkg/contract"}, outside: []string{"github.com/klauspost/compress", "github.com/prometheus", "google.golang.org/grpc"}},
	// cncf/xds: TypedStruct, in which a filter may be.
	{path: "pkg/wasm/wasmfilter", module: []string{"pkg/wasm"}, outside: append([]string{"github.com/cncf/xds"}, envoyTypes...)},
	{path: "pkg/wasm/settings", module: []string{"pkg/wasm", "pkg/config"}},
	// oras: the protocol of registries, with their ways to authenticate. opencontainers: the types of its API.
	{path: "pkg/wasm", outside: []string{"oras.land/oras-go/v2", "github.com/opencontainers/image-spec"}},
	{path: "pkg/xds", module: []string{"internal/grpcsock"}, outside: append([]string{"istio.io/api", "sigs.k8s.io/yaml"}, grpcTypes...)},

	// go-containerregistry: the forms of images, layouts and registries, which containerd, Docker and crane read.
	{path: "build", outside: []string{"github.com/google/go-containerregistry"}},

	// What shows, measures and tests the whole may use the whole.
	{path: "demo", module: []string{""}, outside: []string{""}},
	{path: "bench", module: []string{""}, outside: []string{""}},
	{path: "tests", module: []string{""}, outside: []string{""}},
}

// forTests may be imported by test files, besides what their package may import.
var forTests = []string{
	"github.com/google/go-cmp", "github.com/rogpeppe/go-internal", "go.uber.org/goleak",
	"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "golang.org/x/sys", "golang.org/x/tools/go/packages", "google.golang.org/protobuf",
}

func layerOf(short string) (layer, bool) {
	for _, l := range layers {
		if within(short, l.path) {
			return l, true
		}
	}
	return layer{}, false
}

// within reports whether an import path is prefix or below it; the empty prefix covers all.
func within(importPath, prefix string) bool {
	return prefix == "" || importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
}

func withinAny(importPath string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return within(importPath, p) })
}

// isStandard reports whether a path is the standard library's: no dot in its first element.
func isStandard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// mayImport reports whether a package of layer l, which may use extra besides, may import a path.
// A package and those below it are one unit.
func mayImport(l layer, importPath string, extra []string) bool {
	if withinAny(importPath, everywhere) {
		return true
	}
	if inner, ours := strings.CutPrefix(importPath, modulePath+"/"); ours {
		return within(inner, l.path) || withinAny(inner, l.module)
	}
	return isStandard(importPath) || withinAny(importPath, l.outside) || withinAny(importPath, extra)
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range listPackages(t) {
		l, known := layerOf(p.short())
		if !known {
			t.Errorf("%s: no layer in the table of tests/arch_test.go: say there what it may import", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if !mayImport(l, imported, nil) {
				t.Errorf("%s imports %s, which its layer %q may not", p.short(), imported, l.path)
			}
			if imported == modulePath+"/pkg/agent" && !within(p.short(), "cmd") && !within(p.short(), "bench") && !within(p.short(), "tests") {
				t.Errorf("%s imports pkg/agent: only cmd does", p.short())
			}
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			// A test may stand above its package, to read back what it made; it brings no new library.
			inner := strings.HasPrefix(imported, modulePath+"/")
			if !inner && !mayImport(l, imported, slices.Concat(forTests, l.tests)) {
				t.Errorf("a test of %s imports %s, which is neither for tests nor for its layer", p.short(), imported)
			}
		}
	}
}

// The injector runs once in a cluster, next to the API server; whatever the agent links would make it larger and
// give it the agent's faults.
func TestInjectorLinksNoAgentPackage(t *testing.T) {
	// pkg/config/document reads YAML and knows no setting of the agent's; pkg/asmfilter reads one kind of document.
	allowed := []string{"cmd/sidecar-injector", "pkg/asmfilter", "pkg/inject", "pkg/profile", "pkg/contract", "pkg/logging", "pkg/config/document"}
	for _, p := range listPackages(t) {
		if !withinAny(p.short(), []string{"cmd/sidecar-injector", "pkg/inject"}) {
			continue
		}
		for _, dep := range p.Deps {
			if inner, ours := strings.CutPrefix(dep, modulePath+"/"); ours && !withinAny(inner, allowed) {
				t.Errorf("%s links %s", p.short(), inner)
			}
		}
	}
}

func TestPackagesAreNamedForWhatTheyOwn(t *testing.T) {
	forbidden := []string{"util", "utils", "common", "helper", "helpers", "types", "constants", "misc", "shared"}
	for _, p := range listPackages(t) {
		if slices.Contains(forbidden, p.Name) || slices.Contains(forbidden, path.Base(p.ImportPath)) {
			t.Errorf("%s: the name says nothing: name it for the one thing it owns", p.ImportPath)
		}
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s: no package comment: start it with what the package owns", p.ImportPath)
		}
	}
}

func TestImportRuleTable(t *testing.T) {
	tests := []struct {
		from, to string
		want     bool
	}{
		{"dnsproxy", "net/netip", true},
		{"dnsproxy", "github.com/miekg/dns", true},
		{"dnsproxy", modulePath + "/pkg/mesh", false},
		{"dnsproxy", modulePath + "/internal/unixsock", true},
		{"iptables", "github.com/miekg/dns", false},
		{"pkg/mesh", modulePath + "/pkg/agent", false},
		{"pkg/mesh", modulePath + "/pkg/mesh/inner", true},
		{"pkg/meshy", "istio.io/api/networking/v1", false},
		{"pkg/agent", modulePath + "/dnsproxy", true},
		{"hotrestart", modulePath + "/internal/unixsock", true},
		{"internal/unixsock", modulePath + "/pkg/logging", false},
		{"cmd/pilot-agent", modulePath + "/pkg/agent", true},
		{"cmd/sidecar-injector", modulePath + "/pkg/agent", false},
		{"cmd/pilot-agent-standby", "github.com/spf13/cobra", false},
	}
	for _, tt := range tests {
		l, _ := layerOf(tt.from)
		if got := mayImport(l, tt.to, nil); got != tt.want {
			t.Errorf("%s may import %s: %v, want %v", tt.from, tt.to, got, tt.want)
		}
	}
}
