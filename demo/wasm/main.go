// Command wasm owns the story of Wasm filters: the chapters of the ASM manual on them, in a pod without a control plane, with a
// real registry outside of it; and what becomes of traffic when a module is bad or cannot be had.
//
// It needs root, the programs of `make build`, the Envoys of `make envoy`, bin/oras, and Debian's docker-registry, htpasswd and
// wat2wasm; `make demo-wasm` brings them.
package main

import (
	"understudy.mesh/demo/screen"
	"understudy.mesh/demo/story"
	"understudy.mesh/tests/lab"
)

func main() {
	story.Program("demo-wasm", func(t lab.T, s *screen.Screen) {
		f := newFilters(t, s)
		for _, chapter := range []func(){
			f.thePod, f.theFile, f.anotherFile, f.theRegistry, f.theDeployment, f.theTag, f.theRefused, f.withoutRegistry, f.theStrategies, f.theEnd,
		} {
			chapter()
		}
	})
}
