package document

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

// TestFillRefusesFree wants what JSON has no word for, or what would be another number, named where it is.
func TestFillRefusesFree(t *testing.T) {
	const value = "configPatches: [{patch: {value: "
	for _, c := range []struct{ text, field, reason string }{
		{value + "[]}}]", ".configPatches[0].patch.value", "is a list, should be an object"},
		{value + "x}}]", ".configPatches[0].patch.value", `is "x", should be an object`},
		{value + "{a: [{b: .nan}]}}}]", ".configPatches[0].patch.value.a[0].b", "a number that JSON has"},
		{value + "{a: 9007199254740993}}}]", ".configPatches[0].patch.value.a", "quoted"},
		{value + "{a: 18446744073709551615}}}]", ".configPatches[0].patch.value.a", "quoted"},
		{value + "{1: 1, \"1\": 2}}}]", ".configPatches[0].patch.value.1", "is there twice"},
		{value + "{a: !!binary /w==}}}]", ".configPatches[0].patch.value.a", "should be a string"},
		{"configPatches: [{match: {listener: {}, cluster: {}}}]", ".configPatches[0].match.cluster", "is there beside listener"},
		{"priority: 2147483648", ".priority", "should be a whole number from -2147483648"},
		{"priority: 0.5", ".priority", "should be a whole number"},
	} {
		ferr := fillWith(t, &networking.EnvoyFilter{}, c.text)
		if ferr == nil || ferr.Field != c.field || !strings.Contains(ferr.Reason, c.reason) {
			t.Errorf("%s: %v, want field %q, reason ...%s...", c.text, ferr, c.field, c.reason)
		}
	}
}
