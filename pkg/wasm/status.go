package wasm

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// phase is how far a source has come.
type phase string

// The phases. phaseInStore is the last one; whether an Envoy has it is not known here.
const (
	phasePending   phase = "Pending" // for a turn
	phasePulling   phase = "Pulling"
	phaseVerifying phase = "Verifying" // an Envoy tries it
	phaseInStore   phase = "InStore"
	phaseFailed    phase = "Failed" // and will be tried again at NextTry, if there is one
)

// sourceStatus is what became of a source.
type sourceStatus struct {
	From     string    `json:"from"`
	Phase    phase     `json:"phase"`
	Since    time.Time `json:"since"`
	Reason   string    `json:"reason,omitempty"` // of the last failure
	Failures int       `json:"failures,omitempty"`
	NextTry  time.Time `json:"nextTry,omitzero"`
	SHA256   string    `json:"sha256,omitempty"`
	Digest   string    `json:"digest,omitempty"`
	Size     int64     `json:"size,omitempty"`
}

// tracker writes down what becomes of one source.
type tracker struct {
	store *Store
	key   string
	from  string
}

// maxStates bounds what is remembered of sources that nobody asks for any more.
const maxStates = 200

func (s *Store) track(p place, src Source) tracker {
	s.mu.Lock()
	if len(s.states) >= maxStates {
		maps.DeleteFunc(s.states, func(_ string, st *sourceStatus) bool {
			return st.Phase == phaseInStore || st.Phase == phaseFailed && st.NextTry.IsZero()
		})
	}
	s.mu.Unlock()
	t := tracker{s, hashOf([]byte(p.name+"\x00"+p.sha256+"\x00"+src.Secret+"\x00"+src.SecretIfThere+"\x00"), src.DockerConfig, src.Plugin.Config), p.name}
	t.set(func(st *sourceStatus) { st.Phase = phasePending })
	return t
}

// set changes the status, and the time of a change of phase.
func (t tracker) set(change func(*sourceStatus)) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	st := t.store.states[t.key]
	if st == nil {
		st = &sourceStatus{From: t.from}
		t.store.states[t.key] = st
	}
	before := st.Phase
	change(st)
	if st.Phase != before {
		st.Since = t.store.now()
	}
}

func (t tracker) phase(p phase) {
	t.set(func(st *sourceStatus) { st.Phase = p; st.NextTry = time.Time{} })
}

// failed says why, once for each reason, and until when nothing is tried.
func (t tracker) failed(err error, pause time.Duration) {
	news := false
	t.set(func(st *sourceStatus) {
		news = st.Reason != err.Error()
		st.Phase, st.Reason, st.NextTry = phaseFailed, err.Error(), t.store.now().Add(pause)
		st.Failures++
	})
	if news {
		t.store.cfg.Log.Warn("a Wasm module cannot be had, and is tried for again", "from", t.from, "err", err, "after", pause.Round(time.Millisecond).String())
	}
}

// given is an error that is returned.
func (t tracker) given(err error) error {
	t.set(func(st *sourceStatus) { st.Phase, st.Reason, st.NextTry = phaseFailed, err.Error(), time.Time{} })
	return err
}

func (t tracker) stored(m Module) {
	failures := 0
	t.set(func(st *sourceStatus) {
		failures = st.Failures
		*st = sourceStatus{From: st.From, Phase: phaseInStore, Since: st.Since, SHA256: m.SHA256, Digest: m.Digest, Size: m.Size}
	})
	if failures > 0 {
		t.store.cfg.Log.Info("a Wasm module is to be had again", "from", t.from, "failures", failures)
	}
}

// status is what became of each source since the store was made, by name.
func (s *Store) status() []sourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []sourceStatus
	for _, st := range s.states {
		all = append(all, *st)
	}
	slices.SortFunc(all, func(a, b sourceStatus) int {
		return cmp.Or(strings.Compare(a.From, b.From), a.Since.Compare(b.Since))
	})
	return all
}
