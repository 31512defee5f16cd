// Command inject owns the story of the injector: which pods get the agent and with which settings, first of files on this machine,
// then of pods that a real API server is asked to create.
//
// It needs a cluster; `make demo-inject` brings it.
package main

import "understudy.mesh/demo/story"

func main() {
	story.Main("demo-inject", func(s *story.Story) []func() {
		i := &injection{s}
		return []func(){i.thePolicy, i.theFile, i.theInjector, i.thePod, i.theName, i.theNamespace, i.theSwitches}
	})
}
