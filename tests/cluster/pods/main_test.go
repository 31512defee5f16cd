// Package pods tests what a user sees of Understudy's pods in a real Kubernetes. Package cluster says how, and how a test of
// this kind is written.
package pods

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"understudy.mesh/tests/cluster"
)

// shared is the one cluster of all tests here.
var shared *cluster.Cluster

// long is that the tests run as well that take longer than a commit may.
var long = flag.Bool("long", false, "run the long forms as well")

func TestMain(m *testing.M) {
	flag.Parse()
	dir := os.Getenv("UNDERSTUDY_CLUSTER")
	if dir == "" {
		fmt.Println("no cluster, no tests of it: make test-cluster")
		return
	}
	var err error
	if shared, err = cluster.Open(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
