package main

import (
	"context"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

// beside is a container whose files have some hosts, and beside it a pod of Istio's agent under a real istiod with the same.
type beside struct {
	hosts     int
	lab       *lab.Lab
	container *lab.Container
	istios    *istiod.Pod
}

// atBothSizes measures at as many hosts as there are entries, and at ten times as many, each time beside an istiod of its own.
func atBothSizes(t lab.T, s settings, measure func(b beside) []result) (results []result) {
	programs, err := istiod.Build(context.Background(), lab.RepoRoot(t), s.cache, func(what string) { t.Logf("%s", what) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, hosts := range []int{s.entries, manyTimes * s.entries} {
		results = append(results, atSize(t, programs, hosts, measure)...)
	}
	return results
}

func atSize(t lab.T, programs istiod.Programs, hosts int, measure func(b beside) []result) []result {
	b := beside{hosts: hosts, lab: lab.New(t), istios: istiod.NewPod(t, programs, 1)}
	defer b.istios.Istiod.Kill() // the next number of hosts has one of its own
	b.lab.StartDNS(t, nil)
	b.container = b.lab.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	b.container.Write(t, "hosts.yaml", istiod.Hosts(hosts))
	b.istios.Istiod.Write("hosts", istiod.Hosts(hosts))
	b.istios.StartIstiod()
	startQuickly(t, b.istios, b.istios.Istios) // warms the page cache, and istiod's own
	return measure(b)
}

// clear takes from the container's volumes what an agent before has left there.
func (b beside) clear(t lab.T) {
	_ = b.container.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c", "rm -rf /etc/istio/proxy/* /var/lib/istio/data/*")
}
