package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeAdmin serves h on a Unix socket and gives a client of it.
func fakeAdmin(t *testing.T, h http.HandlerFunc) *Admin {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	server.Start()
	a := NewAdmin(path)
	t.Cleanup(func() { a.Close(); server.Close() })
	return a
}

func TestParseStats(t *testing.T) {
	const text = "server.state: 2\n" +
		"cluster.outbound|443||[::1]:80.cx: 7\r\n" +
		"text: \"a: 5\"\n" +
		"histogram: P0(nan,1) P25(nan,2)\n" +
		"negative: -1\n" +
		"largest: 18446744073709551615\n" +
		"\n: 3\nno value\nempty: \n"
	got, err := parseStats(strings.NewReader(text))
	want := map[string]uint64{"server.state": 2, "cluster.outbound|443||[::1]:80.cx": 7, "largest": 1<<64 - 1}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := parseStats(strings.NewReader(strings.Repeat("x", maxStatLine+1))); err == nil {
		t.Error("a line without end is taken")
	}
}

// FuzzParseStats: nothing that Envoy may say breaks the parser, and whatever it reads,
// it reads again from its own writing.
func FuzzParseStats(f *testing.F) {
	f.Add("server.state: 0\nlistener_manager.workers_started: 1\n")
	f.Add("a: b: 1\r\n: 2\n\x00: 3")
	f.Fuzz(func(t *testing.T, text string) {
		stats, err := parseStats(strings.NewReader(text))
		if err != nil {
			return
		}
		var again strings.Builder
		for name, v := range stats {
			fmt.Fprintf(&again, "%s: %d\n", name, v)
		}
		stats2, err := parseStats(strings.NewReader(again.String()))
		if diff := cmp.Diff(stats, stats2); err != nil || diff != "" {
			t.Error(err, diff)
		}
	})
}

func TestReady(t *testing.T) {
	ok := updates{success: 1}
	for _, tc := range []struct {
		state state
		want  string
	}{
		{state{workersStarted: true, cds: ok, lds: ok}, ""},
		{state{cds: ok, lds: ok}, "workers have not yet started"},
		{state{server: serverState(3), cds: ok, lds: ok}, "server is not live, current state is: INITIALIZING"},
		{state{server: serverState(1), workersStarted: true, cds: ok, lds: ok}, "DRAINING"},
		{state{server: 9, cds: ok, lds: ok}, "STATE_9"},
		{stateOf(nil), "waiting for cds"},
		{state{cds: ok}, "waiting for lds"},
		{state{cds: ok, lds: updates{rejected: 2}}, "rejected: cds updates: 1 successful, 0 rejected; lds updates: 0 successful, 2 rejected"},
		{stateOf(map[string]uint64{statCDSSuccess: 1, statLDSSuccess: 1}), "UNKNOWN"},
	} {
		err := tc.state.ready()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: got %v, want %q", tc.state, err, tc.want)
		}
	}
}

func TestStateRequest(t *testing.T) {
	a := fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("asks for compression: %v", r.Header)
		}
		if r.URL.Path != "/stats" || r.URL.Query().Get("filter") != stateFilter || !r.URL.Query().Has("usedonly") {
			t.Errorf("asks for %s", r.URL)
		}
		fmt.Fprintf(w, "%s: 0\n%s: 1\n%s: 3\n%s: 4\n%s: 5\n", statServerState, statWorkersStarted, statCDSSuccess, statLDSSuccess, statLDSRejected)
	})
	got, err := a.state(t.Context())
	want := state{server: live, workersStarted: true, cds: updates{3, 0}, lds: updates{4, 5}}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// TestGauges: gauges are asked for in the form for Prometheus, in which Envoy finds them at once, and in the other one where a user's tag has
// another name of one.
func TestGauges(t *testing.T) {
	for name, tc := range map[string]struct {
		clusters string
		asked    []string
	}{
		"as they are":      {"envoy_cluster_manager_warming_clusters{} 3\n", []string{"/stats/prometheus"}},
		"with a label":     {"envoy_cluster_manager_warming_clusters{a=\"b 9\"} 3\n", []string{"/stats/prometheus"}},
		"another name":     {"envoy_cluster_warming{of=\"manager\"} 3\n", []string{"/stats/prometheus", "/stats"}},
		"none":             {"", []string{"/stats/prometheus", "/stats"}},
		"no number at all": {"envoy_cluster_manager_warming_clusters{} NaN\n", []string{"/stats/prometheus", "/stats"}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			a := fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.URL.Path)
				if got, want := r.URL.Query().Get("filter"), `^(cluster_manager\.warming_clusters|listener_manager\.total_listeners_warming)$`; got != want || r.URL.Query().Get("type") != "Gauges" {
					t.Errorf("asks for %s, want %s", r.URL, want)
				}
				if r.URL.Path == "/stats" {
					fmt.Fprint(w, "cluster_manager.warming_clusters: 3\nlistener_manager.total_listeners_warming: 4\n")
					return
				}
				fmt.Fprint(w, "# TYPE envoy_listener_manager_total_listeners_warming gauge\nenvoy_listener_manager_total_listeners_warming{} 4\n\n"+tc.clusters)
			})
			clusters, listeners, err := a.Warming(t.Context())
			if clusters != 3 || listeners != 4 || err != nil || !slices.Equal(asked, tc.asked) {
				t.Errorf("%d clusters and %d listeners warm, %v; asked %q, want %q", clusters, listeners, err, asked, tc.asked)
			}
		})
	}
}

func TestDrainRequest(t *testing.T) {
	var got string
	a := fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) { got = r.Method + " " + r.RequestURI })
	for want, o := range map[string]DrainOptions{
		"POST /drain_listeners":                                {},
		"POST /drain_listeners?inboundonly&graceful":           {InboundOnly: true, Graceful: true},
		"POST /drain_listeners?inboundonly&graceful&skip_exit": {true, true, true},
	} {
		if err := a.Drain(t.Context(), o); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestAdminErrors(t *testing.T) {
	a := NewAdmin(filepath.Join(t.TempDir(), "nobody"))
	_, err := a.state(t.Context())
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("no socket: %v", err)
	}
	a = fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "not now", http.StatusBadRequest) })
	if err := a.Drain(t.Context(), DrainOptions{}); err == nil || !strings.Contains(err.Error(), "400 Bad Request: not now") {
		t.Errorf("refused: %v", err)
	}
	a = fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("name: 1\n", maxAdminReply/8+1)) // fails when the client gives up
	})
	a.timeout = patience // for megabytes, whatever the machine does meanwhile
	if _, err := a.stats(t.Context(), "", ""); err == nil || !strings.Contains(err.Error(), "narrower filter") {
		t.Errorf("too much: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a = fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := a.stats(ctx, "", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func relaying(a *Admin) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.Relay(w, r, func(reason string) { http.Error(w, reason, http.StatusServiceUnavailable) })
	}
}

// TestRelayStreams reads the first half of a reply while the second is still held back.
func TestRelayStreams(t *testing.T) {
	release := make(chan struct{})
	a := fakeAdmin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != adminHost || r.Method != http.MethodPost || r.RequestURI != "/stats?format=json&x=%20y" {
			t.Errorf("got %s %s of host %s", r.Method, r.RequestURI, r.Host)
		}
		if body, _ := io.ReadAll(r.Body); string(body) != "body" {
			t.Errorf("got body %q", body)
		}
		w.Header().Set("Content-Type", "text/x-envoy")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		<-release
		_, _ = io.WriteString(w, "done")
	})
	front := httptest.NewServer(relaying(a))
	defer front.Close()
	defer front.Client().CloseIdleConnections()
	resp, err := front.Client().Post(front.URL+"/stats?format=json&x=%20y", "", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, 4)
	if _, err := io.ReadFull(resp.Body, half); err != nil || string(half) != "half" {
		t.Errorf("got %q, %v", half, err)
	}
	close(release)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || string(rest) != "done" || resp.StatusCode != http.StatusTeapot || resp.Header.Get("Content-Type") != "text/x-envoy" {
		t.Errorf("got %d %v %q, %v", resp.StatusCode, resp.Header, rest, err)
	}
}

func TestRelayWithoutEnvoy(t *testing.T) {
	w := httptest.NewRecorder()
	relaying(NewAdmin("/nowhere/admin"))(w, httptest.NewRequest(http.MethodGet, "/stats", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "/nowhere/admin") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}
