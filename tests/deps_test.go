package tests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/tests/golden"
)

// What a binary links is what it costs and whose faults it has: each package of others that comes or goes shows in a
// difference that somebody reads. The agent has nothing of the injector's, and the other way round.
func TestBinariesLinkWhatTheirListsSay(t *testing.T) {
	for _, p := range listPackages(t) {
		if p.Name != "main" || !within(p.short(), "cmd") {
			continue
		}
		var linked []string
		for _, dep := range p.Deps {
			if !isStandard(dep) && !within(dep, modulePath) { // our own: TestImportsGoOneWay
				linked = append(linked, dep)
			}
		}
		slices.Sort(linked)
		golden.Check(t, filepath.Join("testdata", "deps", filepath.Base(p.short())+".txt"), strings.Join(linked, "\n")+"\n")
		if p.short() == "cmd/pilot-agent" && slices.ContainsFunc(p.Deps, func(dep string) bool {
			return withinAny(dep, []string{"k8s.io/api", "k8s.io/client-go", "sigs.k8s.io/controller-runtime", modulePath + "/pkg/inject", modulePath + "/pkg/profile"})
		}) {
			t.Errorf("%s links the injector's packages", p.short())
		}
	}
}
