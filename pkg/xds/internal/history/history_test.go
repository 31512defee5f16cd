package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHistoryIsBounded: the last changes stay, however many there were at once.
func TestHistoryIsBounded(t *testing.T) {
	var h History
	of := h.of(Added, "type")
	long := strings.Repeat("x", 200)
	for i := range 10 {
		for k := range 1000 {
			h.add(past{kind: of, name: fmt.Sprintf("%s-%d-%d", long, i, k)})
		}
	}
	size := 0
	for _, p := range h.changes[h.first:] {
		size += p.bytes()
	}
	if size != h.bytes || size > maxHistory || size < maxHistory-1000 || len(h.changes) > 2*(len(h.changes)-h.first) {
		t.Errorf("%d bytes are kept, and %d counted, after %d that are not: want a little less than %d", size, h.bytes, h.first, maxHistory)
	}
	if last := h.changes[len(h.changes)-1].name; !strings.HasSuffix(last, "-9-999") {
		t.Errorf("the last change is %q", last)
	}
	h.add(past{kind: of, name: strings.Repeat("x", 2*maxHistory)})
	if len(h.changes) != h.first || h.bytes != 0 {
		t.Errorf("%d changes of %d bytes are kept beside one that is too large", len(h.changes)-h.first, h.bytes)
	}
}

// TestPrecede: what was before comes first.
func TestPrecede(t *testing.T) {
	var h History
	now := time.Unix(1000, 0)
	h.Add(now, Added, "type", "c", "d")
	h.Precede([]Change{{now.Add(-time.Hour), Added, "type", "a"}, {now.Add(-time.Minute), Removed, "other", "b"}})
	want := []Change{{now.Add(-time.Hour), Added, "type", "a"}, {now.Add(-time.Minute), Removed, "other", "b"}, {now, Added, "type", "c"}, {now, Added, "type", "d"}}
	if got := h.Changes(); !slices.EqualFunc(got, want, func(a, b Change) bool {
		return a.Time.Equal(b.Time) && a.Change == b.Change && a.Type == b.Type && a.Name == b.Name
	}) {
		t.Errorf("the changes are %v, want %v", got, want)
	}
}
