package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"understudy.mesh/pkg/contract"
)

// step is how far a pod's upgrade is, as far as it is written down. What follows from what the pod and its agent say is not.
type step string

const (
	stepResizing  step = "resizing"  // the idle slot is to get the requests of the one that serves
	stepSwitching step = "switching" // the idle slot has the new image
	stepResetting step = "resetting" // the new proxy serves, and the old slot has the empty image
	stepAborting  step = "aborting"  // it failed: the new slot has the empty image again
	stepNoRoom    step = "noRoom"    // the node has no room for the requests; they are put back
)

// record is what is written into a pod: all that another process needs to go on.
type record struct {
	Step step  `json:"step"`
	Run  int64 `json:"run"`
	// Slot is the one that gets the new image, with its version.
	Slot    string `json:"slot"`
	Version int64  `json:"version"`
	New     string `json:"new"`
	Old     string `json:"old"`
	Empty   string `json:"empty"`
	// At is since when the step lasts.
	At time.Time `json:"at"`
	// Restarts are those of Slot before it got its image.
	Restarts int32 `json:"restarts"`
	// Before is what the old proxy had answered when the upgrade began; nil if that is unknown.
	Before *contract.Requests `json:"before,omitempty"`
	// Served are the restarts of Slot when its proxy was found good.
	Served int32 `json:"served,omitempty"`
	// Reason is why it failed, or was held; Superseded that it was given up for another image, which is no failure.
	Reason     string `json:"reason,omitempty"`
	Superseded bool   `json:"superseded,omitempty"`
	// Idle are the requests of a slot that idles, if they are lower.
	Idle *requests `json:"idle,omitempty"`
	// Starts are what the kubelet remembers: which slot got which image, and when.
	Starts []start `json:"starts,omitempty"`
	// Injected is the image that the pod was created with.
	Injected string `json:"injected,omitempty"`
}

// start is that a slot got an image.
type start struct {
	Slot  string    `json:"slot"`
	Image string    `json:"image"`
	At    time.Time `json:"at"`
}

const (
	// kubeletRemembers is how long the kubelet knows that it has started an image in a slot. The second start within it waits 10 s.
	kubeletRemembers = 10 * time.Minute
	// startLag is how much later than the patch a start may be.
	startLag = 15 * time.Second
	// maxRecord is the length of a record that is read: it may be anybody's.
	maxRecord = 16 << 10
)

// parseRecord reads what a pod says, which whoever may write pods may have changed.
func parseRecord(text string) (record, error) {
	var r record
	fail := func(what string) (record, error) {
		return record{}, fmt.Errorf("annotation %s: %s; delete it", stateAnnotation, what)
	}
	if len(text) > maxRecord {
		return fail(fmt.Sprintf("%d bytes, more than %d", len(text), maxRecord))
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fail(err.Error())
	}
	switch {
	case !slices.Contains([]step{stepResizing, stepSwitching, stepResetting, stepAborting, stepNoRoom}, r.Step):
		return fail(fmt.Sprintf("step %q is unknown", r.Step))
	case r.Slot != contract.ProxyContainer && r.Slot != contract.SecondContainer:
		return fail(fmt.Sprintf("slot %q is none of the pod's", r.Slot))
	case r.New == "" || r.Old == "" || r.Empty == "" || r.Version <= 0:
		return fail("an image or the version is missing")
	}
	return r, nil
}

func (r record) text() string {
	out, err := json.Marshal(r)
	if err != nil { // strings, numbers, times and quantities can always be written
		panic(fmt.Sprintf("write a pod's record: %v", err))
	}
	return string(out)
}

// started notes that a slot gets an image now, and forgets what the kubelet has forgotten.
func (r *record) started(slot, image string, now time.Time) {
	r.Starts = slices.DeleteFunc(slices.Clone(r.Starts), func(s start) bool { return now.Sub(s.At) > kubeletRemembers+startLag })
	r.Starts = append(r.Starts, start{slot, image, now.UTC().Truncate(time.Second)})
}

// free is from when on the kubelet starts an image in a slot at once, as far as is known: zero for now.
func (r *record) free(slot, image string) (at time.Time) {
	for _, s := range r.Starts {
		if s.Slot == slot && s.Image == image && s.At.Add(kubeletRemembers+startLag).After(at) {
			at = s.At.Add(kubeletRemembers + startLag)
		}
	}
	return at
}
