package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/contract"
)

var viewedAt = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return viewedAt.Add(-d) }

// midUpgrade is a pod with a generation that serves, one that drains, one that failed
// to take over, and one that does not answer.
var midUpgrade = contract.UpgradeStatus{
	HandoffDir: "/etc/asm/uds",
	Generations: []contract.GenerationStatus{
		{ID: "3k9f2a", Self: true, Role: "serving", Since: ago(5*time.Minute + 12*time.Second), AgentVersion: "1.5.0", EnvoyVersion: "1.40.0",
			Sockets:     []string{"envoy tcp://0.0.0.0:15001 0", "envoy tcp://0.0.0.0:15001 1", "agent dns udp 127.0.0.1:15053", "envoy tcp://[::]:15006 0", "agent status tcp 0"},
			LastAttempt: &contract.Attempt{At: ago(5*time.Minute + 13*time.Second), With: "1ab2cd", TakingOver: true, Result: "success", Seconds: 1.2}},
		{ID: "7zz000", Role: "standby", Since: ago(3*time.Hour + 4*time.Minute), AgentVersion: "1.5.1", EnvoyVersion: "1.39.3",
			LastAttempt: &contract.Attempt{At: ago(42 * time.Second), With: "3k9f2a", TakingOver: true, Result: "failure", Reason: "Envoy exited with 1:\n\tno such\x1b[31m flag"}},
		{ID: "1ab2cd", Role: "draining", Since: ago(5*time.Minute + 12*time.Second), AgentVersion: "1.4.0", EnvoyVersion: "1.39.3", Connections: 12, Drain: &contract.Drain{Idle: 1, Active: 2, Streams: 3, TCP: 6},
			LastAttempt: &contract.Attempt{At: ago(5*time.Minute + 13*time.Second), With: "3k9f2a", Result: "success"}},
		{ID: "0dead0", Error: "it did not answer within 2s"},
	},
}

func TestUpgradeStatusTable(t *testing.T) {
	for _, tc := range []struct {
		name    string
		status  contract.UpgradeStatus
		sockets bool
		want    string
	}{
		{name: "in the middle of an upgrade", status: midUpgrade, want: `
GENERATION  ROLE      SINCE  AGENT  ENVOY   CONNECTIONS                              SOCKETS  LAST ATTEMPT
3k9f2a *    serving   5m12s  1.5.0  1.40.0  -                                        5        success 5m13s ago, from 1ab2cd
7zz000      standby   3h4m   1.5.1  1.39.3  -                                        0        failure 42s ago, from 3k9f2a: Envoy exited with 1: no such [31m flag
1ab2cd      draining  5m12s  1.4.0  1.39.3  12 (1 idle, 2 active, 3 streams, 6 TCP)  0        success 5m13s ago, to 3k9f2a
0dead0      -         -      -      -       -                                        -        no answer: it did not answer within 2s
`},
		{name: "with sockets", sockets: true, status: contract.UpgradeStatus{HandoffDir: "/etc/asm/uds", Generations: midUpgrade.Generations[:2]}, want: `
GENERATION  ROLE     SINCE  AGENT  ENVOY   CONNECTIONS  SOCKETS  LAST ATTEMPT
3k9f2a *    serving  5m12s  1.5.0  1.40.0  -            5        success 5m13s ago, from 1ab2cd
7zz000      standby  3h4m   1.5.1  1.39.3  -            0        failure 42s ago, from 3k9f2a: Envoy exited with 1: no such [31m flag

Sockets of 3k9f2a:
  envoy tcp://0.0.0.0:15001 (2)
  agent dns udp 127.0.0.1:15053
  envoy tcp://[::]:15006 (1)
  agent status tcp 0

Sockets of 7zz000:
  none
`},
		{name: "off", status: contract.UpgradeStatus{Off: "there is no hand-off directory: --handoffDir",
			Generations: []contract.GenerationStatus{{ID: "3k9f2a", Self: true, Role: "serving", Since: ago(50 * time.Hour), AgentVersion: "1.5.0", EnvoyVersion: "1.40.0", Sockets: []string{"a"}}}}, want: `
GENERATION  ROLE     SINCE  AGENT  ENVOY   CONNECTIONS  SOCKETS  LAST ATTEMPT
3k9f2a *    serving  2d2h   1.5.0  1.40.0  -            1        -

Hot upgrade is off: there is no hand-off directory: --handoffDir
`},
		{name: "drains of which little is known", status: contract.UpgradeStatus{HandoffDir: "/d", Generations: []contract.GenerationStatus{
			{ID: "a", Role: "draining", Since: ago(0)},
			{ID: "b", Role: "draining", Since: ago(time.Second), Connections: 3},
			{ID: "c", Role: "draining", Since: ago(time.Second), Connections: 1, Drain: &contract.Drain{TCP: 1}},
		}}, want: `
GENERATION  ROLE      SINCE  AGENT  ENVOY  CONNECTIONS  SOCKETS  LAST ATTEMPT
a           draining  0s     -      -      -            0        -
b           draining  1s     -      -      3            0        -
c           draining  1s     -      -      1 (1 TCP)    0        -
`},
		{name: "a hand-off that runs, a drain without connections, a clock that was set back",
			status: contract.UpgradeStatus{HandoffDir: "/d", Generations: []contract.GenerationStatus{
				{ID: "b", Self: true, Role: "handing-off", Since: viewedAt.Add(time.Minute), LastAttempt: &contract.Attempt{At: ago(time.Second), With: "c", Result: "running"}},
				{ID: "a", Role: "draining", Since: ago(59 * time.Second), Drain: &contract.Drain{}, LastAttempt: &contract.Attempt{At: ago(time.Minute), With: "b", Result: "success"}},
			}}, want: `
GENERATION  ROLE         SINCE  AGENT  ENVOY  CONNECTIONS  SOCKETS  LAST ATTEMPT
b *         handing-off  0s     -      -      -            0        running for 1s, to c
a           draining     59s    -      -      0            0        success 1m0s ago, to b
`},
		{name: "an agent that tells nothing", want: `
GENERATION  ROLE  SINCE  AGENT  ENVOY  CONNECTIONS  SOCKETS  LAST ATTEMPT

Hot upgrade is off: the agent gives no reason
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			upgradeView{now: viewedAt, sockets: tc.sockets}.print(&out, tc.status)
			if diff := cmp.Diff(strings.TrimPrefix(tc.want, "\n"), out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestUpgradeStatusJSON prints what the agent says, with what this release does not know.
func TestUpgradeStatusJSON(t *testing.T) {
	raw := []byte(`{"handoffDir":"/d","generations":[{"id":"a","later":1}]}` + "\n")
	var out bytes.Buffer
	if err := cli.PrintJSON(&out, json.RawMessage(raw)); err != nil {
		t.Fatal(err)
	}
	want := `{
  "handoffDir": "/d",
  "generations": [
    {
      "id": "a",
      "later": 1
    }
  ]
}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
