// Command fleet owns the story of an upgrade in place: five pods under load get another proxy by one command, lose it again, and are
// asked to take one that is bad.
//
// It needs a cluster; `make demo-fleet` brings it.
package main

import "understudy.mesh/demo/story"

func main() {
	story.Main("demo-fleet", func(s *story.Story) []func() {
		f := &fleet{Story: s}
		return []func(){f.thePods, f.theUpgrade, f.theBadImage, f.theUndo, f.theCount}
	})
}
