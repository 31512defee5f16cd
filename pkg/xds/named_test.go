package xds

import "testing"

// TestNamed: routes come when Envoy asks for those that a listener names, and a configuration is not in force without them.
// It goes on without asking where nothing names one.
func TestNamed(t *testing.T) {
	s, path := serveTypes(t, []string{clusterType, routeURL, listenerType})
	version := s.Set(Snapshot{clusterType: list("c"), routeURL: list("80", "81"), listenerType: list("l")})
	envoy := connect(t, path)
	envoy.subscribe(clusterType)
	envoy.expect("Cluster +c")
	envoy.subscribe(listenerType)
	listeners := envoy.next()
	if got := describe(listeners); got != "Listener +l" {
		t.Fatal(got)
	}
	envoy.subscribe(routeURL, "80") // the listener that has come names it
	envoy.ack(listeners)
	routes := envoy.next()
	if got := describe(routes); got != "RouteConfiguration +80" {
		t.Fatal(got)
	}
	notApplied(t, s, version)
	envoy.ack(routes)
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	// What is new is there before a listener sends anybody to it.
	version = s.Set(Snapshot{clusterType: list("c", "d"), routeURL: list("80=new", "81"), listenerType: list("l=new")})
	envoy.expect("Cluster +d")
	envoy.expect("RouteConfiguration +80")
	envoy.expect("Listener +l")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	// A listener that drains still uses its routes.
	version = s.Set(Snapshot{clusterType: list("c"), listenerType: list("other")})
	envoy.expect("Listener +other -l")
	envoy.expect("Cluster -d")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	envoy.nothing()
}

// TestNothingNamed: an Envoy that never asks for routes has its configuration all the same.
func TestNothingNamed(t *testing.T) {
	s, path := serveTypes(t, []string{clusterType, routeURL, listenerType})
	version := s.Set(Snapshot{clusterType: list("c"), listenerType: list("l")})
	envoy := connect(t, path)
	envoy.subscribe(clusterType)
	envoy.expect("Cluster +c")
	envoy.subscribe(listenerType)
	envoy.expect("Listener +l")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}
