package istiod_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

var (
	cache = flag.String("cache", "", "the directory of the programs that were built; without it nothing is tested")
	// long is that the tests run as well that take longer than a commit may.
	long = flag.Bool("long", false, "run the long forms as well")
	// istio is what was built.
	istio istiod.Programs
)

func TestMain(m *testing.M) {
	if ran, err := lab.RunTraffic(); ran {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if *cache == "" {
		fmt.Println("no istiod, no tests with it: make test-istiod")
		return
	}
	os.Exit(m.Run())
}

// newPod is a pod under an istiod that runs and has some configuration, by name of the file.
func newPod(t *testing.T, slots int, files map[string]string, env ...string) *istiod.Pod {
	t.Helper()
	if istio.Istiod == "" {
		var err error
		istio, err = istiod.Build(t.Context(), lab.RepoRoot(t), *cache, func(what string) { t.Log(what) })
		if err != nil {
			t.Fatal(err)
		}
	}
	p := istiod.NewPod(t, istio, slots, env...)
	for name, text := range files {
		p.Istiod.Write(name, text)
	}
	p.StartIstiod()
	return p
}
