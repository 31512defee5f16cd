package handoff

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

const (
	// maxIDLength keeps the names of a generation's files short and plain.
	maxIDLength = 32
	// maxFieldLength bounds every text of an Identity; a version or an UID has a fraction of it.
	maxFieldLength = 256
)

// Identity says who a generation is: what it runs, and what decides which of two is newer.
type Identity struct {
	// ID names the generation's files in the hand-off directory: 1 to 32 of [0-9a-z],
	// never used twice.
	ID string `json:"id"`
	// PodUID is the pod's; two generations that both know theirs must agree.
	PodUID string `json:"podUID,omitempty"`
	// AgentVersion and EnvoyVersion are for people and metrics.
	AgentVersion string `json:"agent,omitempty"`
	EnvoyVersion string `json:"envoy,omitempty"`
	// HotRestartVersion is what `envoy --hot-restart-version` prints ("11.104"). It binds
	// an agent to its own Envoy, not two agents to one another.
	HotRestartVersion string `json:"hotRestart,omitempty"`
	// Version and Alt are SIDECARSET_VERSION and SIDECARSET_VERSION_ALT, as they were in
	// the environment when the agent started; empty when unset.
	Version string `json:"version,omitempty"`
	Alt     string `json:"versionAlt,omitempty"`
	// Started is when the agent started, by the wall clock.
	Started time.Time `json:"started"`
	// Boot is the same moment as the node's time since boot (CLOCK_BOOTTIME,
	// clock_gettime(2)): all containers of a node share it and nobody sets it, so it,
	// when both sides have it, decides which start was later. 0: unknown.
	Boot time.Duration `json:"boot,omitempty"`
	// Force is --takeover=force.
	Force bool `json:"force,omitempty"`
}

// validate refuses an identity that could not name files or would not fit a frame.
func (i Identity) validate() error {
	if err := validateID(i.ID); err != nil {
		return err
	}
	for _, text := range []string{i.PodUID, i.AgentVersion, i.EnvoyVersion, i.HotRestartVersion, i.Version, i.Alt} {
		if len(text) > maxFieldLength {
			return fmt.Errorf("generation %s: a field of %d bytes (%.20q...): at most %d", i.ID, len(text), text, maxFieldLength)
		}
	}
	return nil
}

func validateID(id string) error {
	if id == "" || len(id) > maxIDLength {
		return fmt.Errorf("generation id %.40q: 1 to %d characters of 0-9 and a-z", id, maxIDLength)
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Errorf("generation id %q: 1 to %d characters of 0-9 and a-z", id, maxIDLength)
		}
	}
	return nil
}

// Verdict is the answer to "may this one take over from that one?".
type Verdict struct {
	// TakeOver is true when it may; else it stands by while the other answers.
	TakeOver bool
	// Reason is a phrase for the log and for the one that is refused.
	Reason string
	// Warning is not empty when the numbers are set but were of no use, or contradict
	// one another; it names the remedy.
	Warning string
}

// Newer decides whether the generation a may take over from b, which is alive. It is
// pure, and but for --takeover=force exactly one of Newer(a, b) and Newer(b, a) says
// yes, so that of two that start at once one yields. In this order:
//
//  1. --takeover=force on a alone: yes.
//  2. The numbers of one of them say that it is an old container which was started
//     again (VERSION < ALT), those of the other do not: the other is newer.
//  3. Both have a VERSION, and they differ: the higher one is newer.
//  4. Unset, equal, not a number: the later start is newer, the higher ID when the
//     starts are the same.
//
// VERSION > ALT and ALT 0 (the first start) have no rule of their own: in all that
// OpenKruise writes, 2 and 3 say the same, and where they do not, an older VERSION must
// not take over (with a warning).
func Newer(a, b Identity) Verdict {
	mine, problem := readGeneration(a)
	theirs, _ := readGeneration(b)
	switch {
	case a.Force && !b.Force:
		return Verdict{TakeOver: true, Reason: "--takeover=force", Warning: problem}
	case mine.older != theirs.older:
		return Verdict{!mine.older, olderReason(mine.older, a, b), problem}
	case mine.known && theirs.known && mine.version != theirs.version:
		v := Verdict{TakeOver: mine.version > theirs.version, Warning: problem}
		if v.Reason = fmt.Sprintf("SIDECARSET_VERSION %s is newer than the live %s", a.Version, b.Version); !v.TakeOver {
			v.Reason = fmt.Sprintf("SIDECARSET_VERSION %s is older than the live %s", a.Version, b.Version)
			if mine.version > mine.alt && mine.alt > 0 {
				v.Warning = fmt.Sprintf("SIDECARSET_VERSION %s is above SIDECARSET_VERSION_ALT %s, but the live generation %s has %s: "+
					"if the cluster's numbers went backwards, start with --takeover=force", a.Version, a.Alt, b.ID, b.Version)
			}
		}
		return v
	}
	if startedLater(a, b) {
		return Verdict{true, "it started later", problem}
	}
	return Verdict{false, "it started earlier than the live generation", problem}
}

func olderReason(aIsOlder bool, a, b Identity) string {
	if aIsOlder {
		return fmt.Sprintf("SIDECARSET_VERSION %s is below SIDECARSET_VERSION_ALT %s: an old container that was started again", a.Version, a.Alt)
	}
	return fmt.Sprintf("the live generation %s is an old container that was started again (SIDECARSET_VERSION %s, _ALT %s)", b.ID, b.Version, b.Alt)
}

// sidecarSet is what OpenKruise's two numbers say of the container that has them.
type sidecarSet struct {
	version, alt uint64
	known        bool // version is usable
	older        bool // VERSION < ALT: the other slot is the newer one
}

// readGeneration reads the numbers of one generation; problem is set when they are set
// but decide nothing by themselves.
func readGeneration(i Identity) (set sidecarSet, problem string) {
	if i.Version == "" && i.Alt == "" {
		return sidecarSet{}, ""
	}
	version, versionErr := strconv.ParseUint(i.Version, 10, 64)
	alt, altErr := strconv.ParseUint(i.Alt, 10, 64)
	if err := errors.Join(versionErr, altErr); err != nil {
		return sidecarSet{}, fmt.Sprintf("SIDECARSET_VERSION %q and SIDECARSET_VERSION_ALT %q are not both numbers: the later start counts as newer", i.Version, i.Alt)
	}
	set = sidecarSet{version: version, alt: alt, known: true, older: version < alt}
	if version == alt && alt != 0 {
		return sidecarSet{}, fmt.Sprintf("SIDECARSET_VERSION and SIDECARSET_VERSION_ALT are both %s: the later start counts as newer", i.Version)
	}
	return set, ""
}

// startedLater is a strict total order of generations.
func startedLater(a, b Identity) bool {
	switch {
	case a.Boot > 0 && b.Boot > 0 && a.Boot != b.Boot:
		return a.Boot > b.Boot
	case (a.Boot == 0 || b.Boot == 0) && !a.Started.Equal(b.Started):
		return a.Started.After(b.Started)
	}
	return a.ID > b.ID
}
