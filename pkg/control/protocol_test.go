package control

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/pkg/contract"
)

// Commands of one release ask agents of another, in the pod's other container. So these
// names, paths and fields stay.

func TestNamesStay(t *testing.T) {
	mount, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	first := "@understudy-" + strings.Trim(strings.TrimPrefix(mount, "mnt:"), "[]")
	got, err := ownSocketNames()
	if diff := cmp.Diff([]string{first, first + "-2", first + "-3", first + "-4"}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if name, err := SocketName("self"); err != nil || name != first {
		t.Errorf("%s, %v, want %s", name, err, first)
	}
}

func TestPathsStay(t *testing.T) {
	want := strings.Fields("/status /admin /role /upgrade /debug/dns/lookup /debug/dns/table /debug/dns/cache /debug/dns/flush /debug/dns/vips /debug/dns/upstreams")
	got := []string{StatusPrefix, AdminPrefix, RolePath, UpgradePath, DNSLookupPath, DNSTablePath, DNSCachePath, DNSFlushPath, DNSVIPsPath, DNSUpstreamsPath}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnswersStay(t *testing.T) {
	at := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name   string
		answer any
		want   string
	}{
		{"a role", RoleStatus{Role: "serving", Settled: true, Drained: true, Reason: "r", UpgradeDrainSeconds: 1.5},
			`{"role":"serving","settled":true,"drained":true,"reason":"r","upgradeDrainSeconds":1.5}`},
		{"no role", RoleStatus{}, `{"role":"","settled":false,"drained":false,"upgradeDrainSeconds":0}`},
		{"generations", contract.UpgradeStatus{HandoffDir: "/d", Generations: []contract.GenerationStatus{
			{ID: "a", Self: true, Role: "draining", Since: at, Started: at, AgentVersion: "1", EnvoyVersion: "2", HotRestartVersion: "3",
				SidecarSetVersion: "4", SidecarSetVersionAlt: "5", Connections: 6, Requests: &contract.Requests{Inbound: contract.Answers{Completed: 7, Errors: 8}}, Sockets: []string{"s"},
				LastAttempt: &contract.Attempt{At: at, With: "b", TakingOver: true, Result: "failure", Reason: "r", Seconds: 1.5}},
			{ID: "b", Error: "e", LastAttempt: &contract.Attempt{}},
		}}, `{"handoffDir":"/d","generations":[` +
			`{"id":"a","self":true,"role":"draining","since":"2026-03-01T03:00:00Z","started":"2026-03-01T03:00:00Z","agent":"1","envoy":"2","hotRestart":"3",` +
			`"sidecarSetVersion":"4","sidecarSetVersionAlt":"5","connections":6,"requests":{"inbound":{"completed":7,"5xx":8},"outbound":{"completed":0,"5xx":0}},"sockets":["s"],` +
			`"lastAttempt":{"at":"2026-03-01T03:00:00Z","with":"b","takingOver":true,"result":"failure","reason":"r","seconds":1.5}},` +
			`{"id":"b","lastAttempt":{"at":"0001-01-01T00:00:00Z","with":"","takingOver":false,"result":""},"error":"e"}]}`},
		{"no hot upgrade", contract.UpgradeStatus{Off: "why"}, `{"off":"why","generations":null}`},
	} {
		got, err := json.Marshal(tc.answer)
		if diff := cmp.Diff(tc.want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
}
