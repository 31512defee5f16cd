package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/pkg/control"
)

// dnsAnswers is what an agent's pages say, and what of it is shown at viewedAt.
var dnsAnswers = map[string]struct {
	page, text string
	print      func(io.Writer, *json.Decoder) error
}{
	control.DNSLookupPath: {
		print: printExplanation,
		page:  `{"name":"aliyun.com.","type":"A","source":"vip","host":"aliyun.com","vip":true,"rcode":"NOERROR","records":["aliyun.com. 30 IN A 240.240.1.2"],"later":1}`,
		text: `
question:  aliyun.com. A
source:    vip
host:      aliyun.com
answer:    NOERROR
           aliyun.com. 30 IN A 240.240.1.2
`},
	control.DNSTablePath: {
		print: printHosts,
		page: `[
{"Name":"aliyun.com","Addrs":["240.240.1.2","2001:2::102"],"VIP":true},
{"Name":"*.wild.example","Addrs":["192.0.2.1"],"VIP":false,"later":{}},
{"Name":"own.wild.example","Addrs":[],"VIP":false,"Forwarded":true}
]`,
		text: `
NAME              SOURCE     ADDRESSES
aliyun.com        VIP        240.240.1.2 2001:2::102
*.wild.example    addresses  192.0.2.1
own.wild.example  upstream   -
`},
	control.DNSCachePath: {
		print: printCache,
		page: `[
{"name": "www.example.","type":"A","rcode":"NOERROR","server":"198.51.100.53:53","remainingSeconds":297.4,"hits":12,"bytes":45},
{"name":"old.example.","type":"HTTPS","flags":["do","cd"],"rcode":"NXDOMAIN","server":"198.51.100.53:53","remainingSeconds":86000,"stale":true,"hits":0,"bytes":90},
{"name":"gone.example.","type":"A","rcode":"SERVFAIL","remainingSeconds":-1,"failure":true,"hits":0,"bytes":0}
]`,
		text: `
NAME           TYPE   FLAGS  ANSWER    STATE    LEFT    HITS  BYTES  SERVER
www.example.   A      -      NOERROR   fresh    4m57s   12    45     198.51.100.53:53
old.example.   HTTPS  do,cd  NXDOMAIN  stale    23h53m  0     90     198.51.100.53:53
gone.example.  A      -      SERVFAIL  failure  0s      0     0      -
`},
	control.DNSFlushPath: {
		print: printFlushed,
		page:  `{"flushed":12}`,
		text: `
Taken out of the cache: 12.
`},
	control.DNSVIPsPath: {
		print: vipView{viewedAt}.print,
		page: `{"later":[1,{}],"pool":{"capacity":65024,"assigned":2,"quarantined":1,"pending":3},
"vips":[
{"host":"aliyun.com","addresses":["240.240.1.2","2001:2::102"],"since":"2026-03-01T02:54:48Z"},
{"host":"early.example","addresses":["240.240.1.3"]},
{"host":"long.example","addresses":["240.240.1.4"],"freed":"2026-03-01T02:00:00Z","usable":"2026-03-01T02:10:00Z"},
{"host":"left.example","addresses":["240.240.1.5"],"freed":"2026-03-01T02:58:00Z","usable":"2026-03-01T03:08:00Z"}
]}`,
		text: `
HOST           ADDRESSES                STATE
aliyun.com     240.240.1.2 2001:2::102  used for 5m12s
early.example  240.240.1.3              used
long.example   240.240.1.4              left 1h0m ago, for others now
left.example   240.240.1.5              left 2m0s ago, for others in 8m0s

Used: 2 of 65024. Kept back, as their host left: 1.
Hosts that got none, as none is left: 3.
`},
	control.DNSUpstreamsPath: {
		print: upstreamView{viewedAt}.print,
		page: `[
{"server":"198.51.100.53:53","state":"failing","inUse":true,"error":"ask 198.51.100.53:53:\n\u001b[1mi/o timeout","errorAt":"2026-03-01T02:59:58Z","requests":7,"failures":2,"hedges":0,"overtaken":1,"rttNanoseconds":1234567,"patienceNanoseconds":100000000},
{"server":"[2001:db8::53]:53","state":"healthy","inUse":false,"requests":0,"failures":0,"hedges":0,"overtaken":0,"rttNanoseconds":0,"patienceNanoseconds":300000000}
]`,
		text: `
SERVER             STATE    IN USE  REQUESTS  FAILURES  HEDGES  OVERTAKEN  LATENCY  LAST ERROR
198.51.100.53:53   failing  yes     7         2         0       1          1.235ms  2s ago: ask 198.51.100.53:53: [1mi/o timeout
[2001:db8::53]:53  healthy  no      0         0         0       0          -        -
`},
}

// dnsPod is a pod whose own agent answers a page.
func dnsPod(t *testing.T, page string, answer reply) *fakePod {
	return &fakePod{own: fakeAgent{replies: map[string]reply{
		control.RolePath: asJSON(t, control.RoleStatus{Role: "serving", Settled: true}), control.StatusPrefix + page: answer,
	}}}
}

func TestDNSCommands(t *testing.T) {
	for page, a := range dnsAnswers {
		for output, want := range map[string]string{"table": strings.TrimPrefix(a.text, "\n"), "": strings.TrimPrefix(a.text, "\n"), "json": a.page} {
			t.Run(page+" "+output, func(t *testing.T) {
				pod := dnsPod(t, page, reply{code: 200, body: a.page})
				var out bytes.Buffer
				q := dnsQuestion{page: page, query: url.Values{"name": {"a b"}}, output: output, print: a.print}
				if err := pod.container().askDNS(t.Context(), q, &out); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, out.String()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if asked := "GET " + control.StatusPrefix + page + "?name=a+b"; !slices.Contains(pod.own.asked, asked) || len(pod.ports.asked) > 0 {
					t.Errorf("its own agent got %q, the ports %q; want %q and none", pod.own.asked, pod.ports.asked, asked)
				}
			})
		}
		// An answer that breaks off is no whole one.
		for n := range a.page {
			if err := a.print(io.Discard, json.NewDecoder(strings.NewReader(a.page[:n]))); err == nil {
				t.Fatalf("%s: taken for whole after %d bytes: %s", page, n, a.page[:n])
			}
		}
		for _, other := range []string{`"x"`, `7`, `[7]`} {
			if err := a.print(io.Discard, json.NewDecoder(strings.NewReader(other))); err == nil {
				t.Errorf("%s: %s is no error", page, other)
			}
		}
	}
}

// TestDNSList has lists that are empty and ones that are long.
func TestDNSList(t *testing.T) {
	show := func(print func(io.Writer, *json.Decoder) error, text string) string {
		t.Helper()
		var out bytes.Buffer
		if err := print(&out, json.NewDecoder(strings.NewReader(text))); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(printHosts, "[]"); got != "NAME  SOURCE  ADDRESSES\n" {
		t.Errorf("no names: %q", got)
	}
	if got := show(vipView{viewedAt}.print, `{"pool":{"capacity":9},"vips":[]}`); !strings.Contains(got, "\n\nUsed: 0 of 9. Kept back, as their host left: 0.") {
		t.Errorf("no VIPs: %q", got)
	}
	const names = 100_000
	list := []byte("[")
	for i := range names {
		list = fmt.Appendf(list, `{"Name":"h%d.example","Addrs":["10.0.0.1"]},`, i)
	}
	got := show(printHosts, string(list[:len(list)-1])+"]")
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	if len(lines) != names+1 || strings.Join(strings.Fields(lines[names]), " ") != "h99999.example addresses 10.0.0.1" {
		t.Errorf("%d lines, the last one %q", len(lines), lines[len(lines)-1])
	}
}

func TestDNSErrors(t *testing.T) {
	const page, path = control.DNSTablePath, control.StatusPrefix + control.DNSTablePath
	const off = "DNS capture is off: set ISTIO_META_DNS_CAPTURE=true"
	serving := asJSON(t, control.RoleStatus{Role: "serving"})
	answers := func(r reply) fakeAgent {
		return fakeAgent{replies: map[string]reply{control.RolePath: serving, path: r}}
	}
	absent, nobody := fakeAgent{absent: control.ErrNoAgent}, fakeAgent{absent: refused}
	for _, tc := range []struct {
		name  string
		pod   fakePod
		ports []string // requests
		want  string   // "" is none
		after time.Duration
	}{
		{name: "no agent", pod: fakePod{own: absent, ports: nobody}, after: agentPatience,
			want: `ask the agent (is it running?): Get "http://localhost:15021/debug/dns/table": dial: connect: connection refused`},
		{name: "no agent here, one in another container", pod: fakePod{own: absent, foreign: errForeign}, after: agentPatience,
			want: "ask the agent (is it running?): " + errForeign.Error()},
		{name: "an agent that only the ports know", pod: fakePod{own: absent, ports: fakeAgent{replies: map[string]reply{page: {code: 200, body: "[]"}}}},
			ports: []string{"GET " + page}},
		{name: "an agent without DNS", pod: fakePod{own: answers(reply{code: 404, body: off + "\n"})}, want: off},
		{name: "an agent that has no such page", pod: fakePod{own: answers(reply{code: 404, body: "404 page not found\n"})}, want: errUnknownPath.Error()},
		{name: "a standby", pod: fakePod{own: fakeAgent{replies: map[string]reply{control.RolePath: asJSON(t, control.RoleStatus{Role: "standby"})}}},
			want: "ask the agent (is it running?): " + errStandby.Error()},
		{name: "an agent that fails", pod: fakePod{own: answers(reply{code: 500})}, want: "ask the agent for /debug/dns/table: HTTP status code 500"},
		{name: "no connection", pod: fakePod{own: fakeAgent{absent: errors.New("held by uid 1000")}},
			want: `ask the agent (is it running?): ask the agent for /role: Get "http://agent/role": held by uid 1000`},
		{name: "no JSON", pod: fakePod{own: answers(reply{code: 200, body: "<html>"})}, want: "read the agent's answer: invalid character '<' looking for beginning of value"},
		{name: "another JSON", pod: fakePod{own: answers(reply{code: 200, body: "{}"})}, want: `read the agent's answer: "{" where "[" should be`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				q := dnsQuestion{page: page, output: "table", print: printHosts}
				err := tc.pod.container().askDNS(t.Context(), q, io.Discard)
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || err.Error() != tc.want) {
					t.Errorf("error %v\n want %s", err, tc.want)
				}
				if took := time.Since(start); took != tc.after {
					t.Errorf("it took %s, want %s", took, tc.after)
				}
				if tc.ports != nil && !slices.Equal(tc.pod.ports.asked, tc.ports) {
					t.Errorf("the ports got %q, want %q", tc.pod.ports.asked, tc.ports)
				}
			})
		})
	}
}

// TestDNSAtTheOtherPort asks an agent whose status server is where ASM's manifests have it.
func TestDNSAtTheOtherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := fakePod{own: fakeAgent{absent: control.ErrNoAgent}}
		c := pod.container()
		c.ports.Transport = byPort{"localhost:15020": &fakeAgent{absent: refused}, "localhost:15021": &fakeAgent{
			replies: map[string]reply{control.DNSTablePath: {code: 200, body: "[]"}},
		}}
		var out bytes.Buffer
		err := c.askDNS(t.Context(), dnsQuestion{page: control.DNSTablePath, output: "json"}, &out)
		if err != nil || out.String() != "[]" {
			t.Errorf("%v, %q", err, &out)
		}
	})
}
