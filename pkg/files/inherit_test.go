package files

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// TestReadyWithoutWhatIsRefused: what Envoy refuses keeps a pod from being ready only if it is a
// capture listener, or what the generation before serves.
func TestReadyWithoutWhatIsRefused(t *testing.T) {
	inherited := &publish.Snapshot{Resources: xds.Snapshot{
		build.ClusterType:  {{Name: "outbound|80||a"}},
		build.ListenerType: {{Name: build.OutboundListener}, {Name: "10.0.0.1_80"}},
	}}
	refused := func(kept bool, names ...string) *xds.RejectedError {
		r := &xds.RejectedError{Reasons: names}
		for _, name := range names {
			kind, name, _ := strings.Cut(name, " ")
			r.Resources = append(r.Resources, xds.ID{Type: map[string]string{"cluster": build.ClusterType, "listener": build.ListenerType}[kind], Name: name})
		}
		if kept {
			r.Kept = r.Resources
		}
		return r
	}
	for name, tc := range map[string]struct {
		before  *publish.Snapshot
		refused *xds.RejectedError
		reason  string // "" when it is ready
	}{
		"nothing":                       {inherited, nil, ""},
		"cold":                          {nil, refused(false, "listener 10.0.0.1_80"), ""},
		"cold, outbound":                {nil, refused(false, "listener "+build.OutboundListener), build.OutboundListener},
		"cold, inbound":                 {nil, refused(false, "listener 10.0.0.1_80", "listener "+build.InboundListener), build.InboundListener},
		"a cluster of outbound's name":  {nil, refused(false, "cluster "+build.OutboundListener), ""},
		"a change of outbound":          {nil, refused(true, "listener "+build.OutboundListener), ""},
		"the one before lacks it too":   {inherited, refused(false, "listener 10.0.0.2_80", "cluster outbound|80||b"), ""},
		"the one before has a listener": {inherited, refused(false, "listener 10.0.0.2_80", "listener 10.0.0.1_80"), "10.0.0.1_80"},
		"a cluster of that name":        {inherited, refused(false, "cluster 10.0.0.1_80"), ""},
		"the one before has a cluster":  {inherited, refused(false, "cluster outbound|80||a"), "outbound|80||a"},
		"a change of what it has":       {inherited, refused(true, "listener 10.0.0.1_80"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			inForce, ready := false, &status.Readiness{}
			f := &Files{compiled: &compiled{}, filters: &filters{}, wasm: ecds.New(ecds.Config{}), c: Config{Ready: ready, InForce: func() { inForce = true }}}
			ready.Pending(taskConfig, "files")
			f.before.Store(tc.before)
			f.answered(tc.refused)
			if inForce != (tc.reason == "") {
				t.Errorf("it counts as in force: %v", inForce)
			}
			_, pending := ready.Check()
			i := slices.IndexFunc(pending, func(p status.Pending) bool { return p.Task == taskConfig })
			switch {
			case tc.reason == "" && i >= 0:
				t.Errorf("not ready: %s", pending[i].Reason)
			case tc.reason != "" && (i < 0 || !strings.Contains(pending[i].String(), ": failed: ") || !strings.Contains(pending[i].Reason, tc.reason)):
				t.Errorf("pending are %v, want a failure that names %s", pending, tc.reason)
			}
		})
	}
}

// TestUnreadableHeritage: what no release can have meant is left out, and nothing else.
func TestUnreadableHeritage(t *testing.T) {
	named := func(name string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, fieldResourceName, protowire.BytesType), name)
	}
	snap := &publish.Snapshot{Resources: xds.Snapshot{
		build.ClusterType: {
			xds.NewStored("good", named("good")),
			xds.NewStored("bytes", []byte("\xff\xff")),
			xds.NewStored("other", named("another")),
			xds.NewStored("empty", nil),
			xds.NewStored("good", named("good")),
		},
		build.ListenerType: {xds.NewStored("good", named("good")), xds.NewStored("cut", named("cut")[:3])},
	}}
	bad := discardUnreadable(snap)
	if want := []string{"bytes", "other", "empty", "good", "cut"}; !slices.Equal(bad, want) {
		t.Errorf("left out are %q, want %q", bad, want)
	}
	if len(snap.Resources[build.ClusterType]) != 1 || len(snap.Resources[build.ListenerType]) != 1 {
		t.Errorf("%d clusters and %d listeners are left, want one each", len(snap.Resources[build.ClusterType]), len(snap.Resources[build.ListenerType]))
	}
}

// answers waits until DNS answers precisely these hosts of those that Envoy has.
func (l *containerLife) answers(what string, want ...string) {
	l.t.Helper()
	var got []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		got = nil
		if snap := l.publisher.Published(); snap != nil {
			for _, h := range snap.Hosts {
				got = append(got, h.Name)
			}
		}
		if slices.Equal(got, want) {
			return
		}
	}
	l.t.Errorf("%s: DNS answers %v, want %v", what, got, want)
}

// TestNamesWaitInAHandOff: a host that comes while two generations accept has its name in neither before one is alone. A successor that does not come into force keeps names for a while only.
func TestNamesWaitInAHandOff(t *testing.T) {
	t.Parallel()
	r := newRestarts(t)
	older, text := r.start(), ""
	change := func(l *containerLife, hosts ...string) {
		t.Helper()
		for _, host := range hosts {
			text += entryAt(host, "")
		}
		r.write("a.yaml", text)
		l.next()
		l.take()
	}
	r.write("a.yaml", "")
	older.next()
	older.take()
	change(older, "v1.x")
	older.answers("alone", "v1.x")
	older.Export()
	change(older, "v2.x")
	older.answers("a newcomer warms", "v1.x")
	older.Alone()
	older.answers("it has failed", "v1.x", "v2.x")
	older.Export()
	begun := time.Now()
	change(older, "v3.x")
	older.answers("the next one hangs", "v1.x", "v2.x", "v3.x")
	if waited := time.Since(begun); waited < publish.HoldLimit {
		t.Errorf("the name has waited for %v only", waited)
	}
	last := older.ExportLast()
	older.end()

	text += entryAt("v4.x", "")
	r.write("a.yaml", text)
	newer := r.start()
	newer.next()
	newer.take()
	newer.answers("before the older one has let go", "v1.x", "v2.x", "v3.x", "v4.x")
	newer.ImportLast(map[string][]byte{stateNames: last[stateNames]})
	newer.answers("the older one accepts as well", "v1.x", "v2.x", "v3.x")
	newer.Alone()
	newer.answers("alone", "v1.x", "v2.x", "v3.x", "v4.x")
	newer.ImportLast(map[string][]byte{stateNames: []byte("\xff")})
	newer.answers("what cannot be read", "v1.x", "v2.x", "v3.x", "v4.x")
	newer.has("names may lead nowhere")
	newer.end()
}

// TestLargeHeritage: what is too large for a component moves as a file, and what is not as before.
func TestLargeHeritage(t *testing.T) {
	for name, inline := range map[string]int{"small": maxInline, "large": 1} {
		t.Run(name, func(t *testing.T) {
			r := newRestarts(t)
			r.write("a.yaml", entryAt("v1.x", ""))
			from := r.start()
			from.next()
			from.take()
			from.reports()
			from.inline = inline
			published := from.publisher.Published()
			state, files := from.Export(), from.ExportFiles()
			from.end()
			if _, told := state[StateResources]; told == (name == "large") || (len(files) > 0) == told {
				t.Errorf("told: %v, with %d files", told, len(files))
			}
			got, exact, err := inheritedOf(state, func(component string) io.Reader {
				if files[component] == nil {
					return nil
				}
				var b bytes.Buffer
				if err := files[component](&b); err != nil {
					t.Error(err)
				}
				return &b
			})
			if got == nil || !exact || err != nil {
				t.Fatalf("%v, %v, %v", got, exact, err)
			}
			sameResources(t, got.Resources, published.Resources)
		})
	}
}
