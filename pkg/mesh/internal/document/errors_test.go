package document

import (
	"fmt"
	"testing"
)

// TestManyReasons wants a line with many reasons to stay a line.
func TestManyReasons(t *testing.T) {
	var all []*Error
	for i := range 9 {
		all = append(all, Errorf(fmt.Sprintf("f%d", i), "r"), nil)
	}
	if got := Join(all...).Error(); got != "f0: r; f1: r; f2: r; f3: r; f4: r; and 4 more" {
		t.Error(got)
	}
	if Join(nil, nil) != nil || Join() != nil || Join(nil, &Error{Field: "a", Reason: "b"}).Error() != "a: b" {
		t.Error("joined of nothing or one")
	}
}
