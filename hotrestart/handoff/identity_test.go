package handoff

import (
	"strings"
	"testing"
	"time"
)

func TestNewer(t *testing.T) {
	at := func(version, alt string, boot int) Identity {
		return Identity{ID: "x", Version: version, Alt: alt, Boot: time.Duration(boot) * time.Second}
	}
	forced := func(i Identity) Identity { i.Force = true; return i }
	for _, tc := range []struct {
		name     string
		a, b     Identity // the newcomer, the live one
		takeOver bool
		reason   string
		warning  string
	}{
		{"the first upgrade", at("7", "1", 20), at("1", "0", 10), true, "7 is newer than the live 1", ""},
		{"the next upgrade", at("9", "7", 30), at("7", "1", 20), true, "9 is newer than the live 7", ""},
		{"the old container was started again", at("1", "7", 30), at("7", "1", 20), false, "below SIDECARSET_VERSION_ALT 7", ""},
		{"again, after the worker was", at("1", "7", 40), at("7", "0", 30), false, "below SIDECARSET_VERSION_ALT 7", ""},
		{"the empty slot's first life", at("0", "1", 20), at("1", "0", 10), false, "below SIDECARSET_VERSION_ALT 1", ""},
		{"the worker after the empty slot's agent", at("1", "0", 20), at("0", "1", 10), true, "the live generation x is an old container", ""},
		{"the new image cannot be pulled, the old one serves again, then it can", at("7", "1", 30), at("1", "7", 20), true, "the live generation x is an old container", ""},
		{"ALT 0, the live one is newer", at("1", "0", 20), at("7", "0", 10), false, "1 is older than the live 7", ""},
		{"ALT 0, the live one is older", at("7", "0", 20), at("1", "0", 10), true, "7 is newer than the live 1", ""},
		{"ALT 0 twice", at("1", "0", 20), at("1", "0", 10), true, "started later", ""},
		{"both zero is a first start", at("0", "0", 20), at("0", "0", 10), true, "started later", ""},
		{"both zero, the live one is newer", at("0", "0", 20), at("1", "0", 10), false, "0 is older than the live 1", ""},
		{"VERSION > ALT, but the live VERSION is above", at("5", "1", 20), at("8", "4", 10), false, "5 is older than the live 8", "--takeover=force"},
		{"unset", at("", "", 20), at("", "", 10), true, "started later", ""},
		{"unset, earlier", at("", "", 10), at("", "", 20), false, "started earlier", ""},
		{"unset, the live one has numbers", at("", "", 20), at("7", "1", 10), true, "started later", ""},
		{"VERSION > ALT, the live one has none", at("7", "1", 20), at("", "", 10), true, "started later", ""},
		{"old, the live one has no numbers", at("1", "7", 20), at("", "", 10), false, "below", ""},
		{"equal", at("5", "5", 20), at("1", "0", 10), true, "started later", "are both 5"},
		{"equal, earlier", at("5", "5", 5), at("1", "0", 10), false, "started earlier", "are both 5"},
		{"not a number", at("v5", "1", 20), at("1", "0", 10), true, "started later", `"v5"`},
		{"negative", at("-5", "1", 20), at("1", "0", 10), true, "started later", "not both numbers"},
		{"only one is set", at("5", "", 20), at("1", "0", 10), true, "started later", "not both numbers"},
		{"only ALT is set, to 0", at("", "0", 20), at("1", "0", 10), true, "started later", "not both numbers"},
		{"beyond 64 bits", at("99999999999999999999", "1", 20), at("1", "0", 10), true, "started later", "not both numbers"},
		{"longer is higher, not the text", at("10", "9", 20), at("9", "8", 10), true, "10 is newer", ""},
		{"force, though older", forced(at("1", "7", 30)), at("7", "1", 20), true, "force", ""},
		{"force on both, older", forced(at("1", "7", 30)), forced(at("7", "1", 20)), false, "below", ""},
		{"force on the live one only, the next upgrade", at("9", "3", 30), forced(at("3", "7", 20)), true, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := Newer(tc.a, tc.b)
			if v.TakeOver != tc.takeOver || !strings.Contains(v.Reason, tc.reason) || v.Reason == "" {
				t.Errorf("take over %v (%s), want %v (%s)", v.TakeOver, v.Reason, tc.takeOver, tc.reason)
			}
			if !strings.Contains(v.Warning, tc.warning) || tc.warning == "" && v.Warning != "" {
				t.Errorf("warning %q, want %q", v.Warning, tc.warning)
			}
		})
	}
}

// Without numbers the later start is newer: by the time since boot where both know it, else by the wall clock, and
// at last by the ID.
func TestLaterStartIsNewer(t *testing.T) {
	at := func(id string, boot, clock int) Identity {
		return Identity{ID: id, Boot: time.Duration(boot), Started: time.Unix(int64(clock), 0)}
	}
	for name, tc := range map[string]struct{ later, earlier Identity }{
		"boot, against the clock":          {at("a", 2, 1), at("b", 1, 2)},
		"one has no boot":                  {at("a", 0, 2), at("b", 1, 1)},
		"the other has none":               {at("a", 1, 2), at("b", 0, 1)},
		"none has, against the ID":         {at("a", 0, 2), at("b", 0, 1)},
		"booted at once, whatever clocks":  {at("b", 1, 1), at("a", 1, 2)},
		"started at once, by any of both":  {at("b", 0, 1), at("a", 0, 1)},
		"started at once, one has no boot": {at("b", 1, 1), at("a", 0, 1)},
	} {
		if !Newer(tc.later, tc.earlier).TakeOver || Newer(tc.earlier, tc.later).TakeOver {
			t.Errorf("%s: %+v is not newer than %+v", name, tc.later, tc.earlier)
		}
	}
	if one := at("a", 1, 1); Newer(one, one).TakeOver {
		t.Error("one is newer than itself")
	}
}

// Of two that start at once exactly one must yield, whatever their numbers are.
func TestNewerIsAntisymmetric(t *testing.T) {
	var all []Identity
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, version := range []string{"", "0", "1", "5", "7", "x"} {
		for _, alt := range []string{"", "0", "1", "5", "9"} {
			for _, boot := range []time.Duration{0, 1, 2} {
				for i, id := range []string{"a", "b"} {
					all = append(all, Identity{ID: id, Version: version, Alt: alt, Boot: boot, Started: start.Add(time.Duration(i) * time.Second)})
				}
			}
		}
	}
	for _, a := range all {
		for _, b := range all {
			if a.ID != b.ID && Newer(a, b).TakeOver == Newer(b, a).TakeOver {
				t.Errorf("%+v and %+v: both %v", a, b, Newer(a, b).TakeOver)
			}
		}
	}
}

func TestIdentityIsChecked(t *testing.T) {
	for _, id := range []string{"", "../x", "a/b", "A", "a.b", strings.Repeat("a", 33)} {
		if (Identity{ID: id}).validate() == nil {
			t.Errorf("the id %q was taken", id)
		}
	}
	if (Identity{ID: "a", Version: strings.Repeat("1", 257)}).validate() == nil {
		t.Error("a version of 257 bytes was taken")
	}
	longest := testIdentity(strings.Repeat("z", 32))
	longest.Version = strings.Repeat("1", 256)
	for _, good := range []Identity{testIdentity("0az9"), longest} {
		if err := good.validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, tc := range []struct {
		mine, theirs protocolRange
		want         uint8 // 0: none
	}{
		{reachOf(1), reachOf(1), 1},
		{reachOf(1), reachOf(3), 1},
		{reachOf(3), reachOf(1), 1},
		{reachOf(4), reachOf(2), 2},
		{reachOf(2), reachOf(4), 2},
		{reachOf(3), reachOf(4), 3},
		{reachOf(1), reachOf(4), 0},
		{reachOf(4), reachOf(1), 0},
		{reachOf(1), protocolRange{0, 1}, 0},
		{reachOf(1), protocolRange{2, 1}, 0},
		{reachOf(1), protocolRange{1, 255}, 1},
	} {
		got, err := negotiate(tc.mine, tc.theirs)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("%v with %v: %d, %v; want %d", tc.mine, tc.theirs, got, err, tc.want)
		}
	}
}
