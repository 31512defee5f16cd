// Package kruise owns what is asked of OpenKruise's SidecarSets that exist: whether running pods can take the next one in place.
package kruise

import (
	"encoding/json"
	"fmt"
	"regexp"

	"understudy.mesh/cmd/sidecar-injector/internal/compare"
)

// Difference is a field that differs between two SidecarSets.
type Difference struct {
	Field string // such as spec.containers[istio-proxy].image
	// InPlace says that OpenKruise changes it in running pods, or that pods do not have it; else only new pods get it.
	InPlace bool
}

// Diff compares the one that there is with the one that is to be, each as JSON. What the API server and Kruise's webhook add to the first
// does not count.
func Diff(before, after []byte) ([]Difference, error) {
	var specs [2]struct {
		Spec map[string]any `json:"spec"`
	}
	for i, text := range [][]byte{before, after} {
		if err := json.Unmarshal(text, &specs[i]); err != nil {
			return nil, fmt.Errorf("read a SidecarSet: %w", err)
		}
	}
	var all []Difference
	for _, d := range compare.Fields("spec", specs[0].Spec, specs[1].Spec) {
		all = append(all, Difference{d.Field, inPlace.MatchString(d.Field)})
	}
	return all, nil
}

// inPlace are the images of containers, which Kruise changes in running pods, and what says how.
var inPlace = regexp.MustCompile(`^spec\.(containers\[[^]]*\]\.image|updateStrategy(\..*)?|injectionStrategy(\..*)?|revisionHistoryLimit)$`)
