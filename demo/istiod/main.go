// Command istiod owns the story of a mesh on one machine: two pods whose agents have their configuration and their
// certificates from a real istiod, in a real Kubernetes, mutual TLS between them, and a proxy that is replaced meanwhile.
//
// It needs a cluster with an istiod; `make demo-istiod` brings it.
package main

import "understudy.mesh/demo/story"

func main() {
	story.Main("demo-istiod", func(s *story.Story) []func() {
		m := &mesh{s}
		return []func(){m.theMesh, m.thePods, m.theCertificate, m.theConnection, m.theName, m.theUpgrade}
	})
}
