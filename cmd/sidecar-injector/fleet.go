package main

import (
	"context"
	"errors"
	"fmt"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/pkg/inject"
)

// fleetFlags say which namespaces a command is about.
type fleetFlags struct {
	namespace string
	all       bool
}

func (o *fleetFlags) check() error {
	switch {
	case o.namespace == "" && !o.all:
		return errors.New("flag -n or -A: give a namespace, or all of them")
	case o.namespace != "" && o.all:
		return errors.New("flags -n and -A: give one of them")
	}
	return nil
}

// checkKubelet is an error if the flag --kubelet-version is given, and is no version.
func checkKubelet(version string) error {
	if _, ok := inject.ParseKubelet(version); version != "" && !ok {
		return fmt.Errorf("flag --kubelet-version: %q: want a version of Kubernetes, such as v1.33.0", version)
	}
	return nil
}

// modernNodes reports whether every node has a kubelet as [inject.ParseKubelet] says, by the flag or the cluster. Here nothing is assumed: with a wrong
// answer every pod would differ.
func modernNodes(ctx context.Context, c *cluster.Cluster, version string) (bool, error) {
	if version != "" {
		modern, _ := inject.ParseKubelet(version)
		return modern, nil
	}
	modern, err := c.Modern(ctx)
	if err != nil {
		return false, fmt.Errorf("%w; --kubelet-version says it without asking", err)
	}
	return modern, nil
}
