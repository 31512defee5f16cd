package sidecar

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/mesh/build"
)

// fieldResourceName is the number of the name in Envoy's Cluster and Listener.
const fieldResourceName protowire.Number = 1

// discardUnreadable takes from out what no release can have meant: a resource whose body is no
// message or has another name, and one that comes twice. It returns their names. What Envoy
// itself does not take of the rest, it refuses by name.
func discardUnreadable(out *build.Output) (bad []string) {
	readable := func(list []build.Message) []build.Message {
		seen := make(map[string]bool, len(list))
		return slices.DeleteFunc(list, func(m build.Message) bool {
			name := ""
			err := eachField(m.Body, func(number protowire.Number, value []byte, _ uint64) error {
				if number == fieldResourceName {
					name = string(value)
				}
				return nil
			})
			if err == nil && name == m.Name && !seen[name] {
				seen[name] = true
				return false
			}
			bad = append(bad, m.Name)
			return true
		})
	}
	out.Clusters, out.Listeners = readable(out.Clusters), readable(out.Listeners)
	return bad
}

// lost says which of the missing resources the generation before has, nil when it has none, or
// when this one serves already. A newcomer may lack what its predecessor lacks as well.
func (s *Sidecar) lost(missing []string) error {
	before := s.heritage.Load()
	if before == nil {
		return nil
	}
	for _, list := range [][]build.Message{before.Clusters, before.Listeners} {
		for _, m := range list {
			if slices.Contains(missing, m.Name) {
				return fmt.Errorf("what the generation before serves is refused by Envoy: %q", m.Name)
			}
		}
	}
	return nil
}
