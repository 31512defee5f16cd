package serve

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/pkg/inject/webhook"
)

func TestParseRelease(t *testing.T) {
	for text, want := range map[string]string{
		"1.28.1-0123456-Clean": "1.28.1", "v1.27.0": "1.27.0", "1.28-alpha.9c1-unknown": "1.28", "1.9.10": "1.9.10",
		"1.22.6.76-g7b": "1.22.6", "unknown-unknown": "", "": "", "1": "", "1.28.1x": "", "99999.1.1": "", "<html>1.2.3": "",
	} {
		got, err := parseRelease(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %s, %v, want %q", text, got, err, want)
		}
	}
}

// TestOldestIstiodCounts: one Service may lead to two releases; an old one counts until it has not been seen for a while.
func TestOldestIstiodCounts(t *testing.T) {
	now, says := time.Unix(1e9, 0), map[string]string{}
	i := newIstiods(func() []string {
		return []string{"istiod.istio-system.svc:15012", "canary.istio-system.svc:15012", "no port"}
	}, slog.New(slog.DiscardHandler))
	i.now = func() time.Time { return now }
	i.ask = func(_ context.Context, host string) (string, error) {
		if says[host] == "" {
			return "", errors.New("away")
		}
		return says[host], nil
	}
	const host, address = "istiod.istio-system.svc", "istiod.istio-system.svc:15012"
	for n, step := range []struct {
		later time.Duration
		says  string
		want  string
	}{
		{0, "", ""}, {askEvery, "1.9.3-a-Clean", "1.9.3"}, {askEvery, "1.10.0-b-Clean", "1.9.3"}, {askEvery, "1.9.3-a-Clean", "1.9.3"},
		{knownFor, "1.10.0-b-Clean", "1.9.3"}, {askEvery, "1.10.0-b-Clean", "1.10.0"}, {askEvery, "nonsense", "1.10.0"}, {knownFor + 1, "", ""},
	} {
		now = now.Add(step.later)
		says[host], says["canary.istio-system.svc"] = step.says, "1.29.0"
		i.look(t.Context())
		if got := i.oldest(address); got != step.want {
			t.Errorf("%d: %q, want %q", n, got, step.want)
		}
		if got := i.oldest("canary.istio-system.svc:15012"); got != "1.29.0" {
			t.Errorf("%d: canary: %q", n, got)
		}
	}
	if got := i.oldest("another:15012"); got != "" {
		t.Errorf("an address that nobody asks: %q", got)
	}
}

func TestAskVersion(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != versionPath {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte("1.28.1-0123456-Clean\n"))
	}))
	defer server.Close()
	if text, err := askVersion(t.Context(), server.Client(), server.URL+versionPath); text != "1.28.1-0123456-Clean" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := askVersion(t.Context(), server.Client(), server.URL); err == nil {
		t.Errorf("not found: %q", text)
	}
}

func TestDiscoveryAddresses(t *testing.T) {
	p := newProfiles("own")
	for n, s := range []struct {
		namespace, spec string
		want            []string
	}{
		{"", "", []string{"istiod.istio-system.svc:15012"}},
		{"own", `{"controlPlane": {"discoveryAddress": "a:15012"}}`, []string{"a:15012"}},
		{"shop", `{"proxy": {"config": "discoveryAddress: b:15012"}}`, []string{"a:15012", "b:15012"}},
		{"bar", `{"controlPlane": {"clusterID": "x"}}`, []string{"a:15012", "b:15012"}},
	} {
		if s.namespace != "" {
			p.set(s.namespace, profileOf(t, s.namespace, int64(n), s.spec))
		}
		if diff := cmp.Diff(s.want, p.discoveryAddresses()); diff != "" {
			t.Errorf("%d: %s", n, diff)
		}
	}
}

// TestPodIsToldOfIstiod: what is known of its istiod is in the patch.
func TestPodIsToldOfIstiod(t *testing.T) {
	c := awayCaches(t, true)
	c.istiods.note("istiod.istio-system.svc:15012", release{1, 28, 1})
	for pod, want := range map[string]bool{
		aPod: true,
		`{"metadata": {"name": "a", "annotations": {"proxy.istio.io/config": "discoveryAddress: other:15012"}}, "spec": {"containers": [{"name": "app"}]}}`: false,
	} {
		result, err := c.mutate(t.Context(), webhook.Request{Namespace: "shop", Pod: []byte(pod)})
		if told := strings.Contains(string(result.Patch), `{"name":"ISTIO_META_ISTIO_VERSION","value":"1.28.1"}`); err != nil || told != want {
			t.Errorf("%v, told %v, want %v: %s", err, told, want, result.Patch)
		}
	}
}
