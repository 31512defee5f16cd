package wasm

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"time"
)

// Phase is how far a source has come.
type Phase string

// The phases. InStore is the last one; whether an Envoy has it is not known here.
const (
	Pending   Phase = "Pending" // for a turn, or for a file that is not there yet
	Pulling   Phase = "Pulling"
	Verifying Phase = "Verifying" // an Envoy tries it
	InStore   Phase = "InStore"
	Failed    Phase = "Failed" // and will be tried again at NextTry, if there is one
)

// State is what became of a source.
type State struct {
	From     string    `json:"from"`
	Phase    Phase     `json:"phase"`
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
		maps.DeleteFunc(s.states, func(_ string, st *State) bool {
			return st.Phase == InStore || st.Phase == Failed && st.NextTry.IsZero()
		})
	}
	s.mu.Unlock()
	t := s.tracker(p, src)
	t.set(func(st *State) { st.Phase = Pending })
	return t
}

func (s *Store) tracker(p place, src Source) tracker {
	return tracker{s, hashOf([]byte(p.name+"\x00"+p.sha256+"\x00"+src.Secret+"\x00"+src.SecretIfThere+"\x00"), src.DockerConfig, src.Plugin.Config), p.name}
}

// set changes the status, and the time of a change of phase.
func (t tracker) set(change func(*State)) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	st := t.store.states[t.key]
	if st == nil {
		st = &State{From: t.from}
		t.store.states[t.key] = st
	}
	before := st.Phase
	change(st)
	if st.Phase != before {
		st.Since = t.store.now()
	}
}

func (t tracker) phase(p Phase) {
	t.set(func(st *State) { st.Phase = p; st.NextTry = time.Time{} })
}

// failed says why, once for each reason, and until when nothing is tried.
func (t tracker) failed(err error, pause time.Duration) {
	news := false
	t.set(func(st *State) {
		news = st.Reason != err.Error()
		st.Phase, st.Reason, st.NextTry = Failed, err.Error(), t.store.now().Add(pause)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(t.from, "file://") {
			st.Phase = Pending // a volume may be filled late
		}
		st.Failures++
	})
	if news {
		t.store.cfg.Log.Warn("a Wasm module cannot be had, and is tried for again", "from", t.from, "err", err, "after", pause.Round(time.Millisecond).String())
	}
}

// given is an error that is returned.
func (t tracker) given(err error) error {
	t.set(func(st *State) { st.Phase, st.Reason, st.NextTry = Failed, err.Error(), time.Time{} })
	return err
}

func (t tracker) stored(m Module) {
	failures := 0
	t.set(func(st *State) {
		failures = st.Failures
		*st = State{From: st.From, Phase: InStore, Since: st.Since, SHA256: m.SHA256, Digest: m.Digest, Size: m.Size}
	})
	if failures > 0 {
		t.store.cfg.Log.Info("a Wasm module is to be had again", "from", t.from, "failures", failures)
	}
}

// State is what became of a source since the store was made.
func (s *Store) State(src Source) State {
	p, err := s.place(src)
	if err != nil {
		return State{From: p.name, Phase: Failed, Reason: err.Error()}
	}
	t := s.tracker(p, src)
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[t.key]; st != nil {
		return *st
	}
	return State{From: p.name, Phase: Pending}
}
