package dnscmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/control"
)

var viewedAt = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

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

// answers is an agent that answers one page, and notes what it was asked.
func answers(body string, asked *[]string) cli.Opener {
	return func(_ context.Context, method, path string) (io.ReadCloser, error) {
		*asked = append(*asked, method+" "+path)
		return io.NopCloser(strings.NewReader(body)), nil
	}
}

func TestDNSCommands(t *testing.T) {
	for page, a := range dnsAnswers {
		for output, want := range map[string]string{"table": strings.TrimPrefix(a.text, "\n"), "": strings.TrimPrefix(a.text, "\n"), "json": a.page} {
			t.Run(page+" "+output, func(t *testing.T) {
				var out bytes.Buffer
				var asked []string
				q := cli.Page{Path: page, Query: url.Values{"name": {"a b"}}, Output: cli.Output(output), Print: a.print}
				if err := q.Ask(t.Context(), answers(a.page, &asked), &out); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, out.String()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if want := "GET " + page + "?name=a+b"; !slices.Equal(asked, []string{want}) {
					t.Errorf("the agent got %q, want %q", asked, want)
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
	for _, tc := range []struct{ name, page, want string }{
		{"no JSON", "<html>", "read the agent's answer: invalid character '<' looking for beginning of value"},
		{"another JSON", "{}", `read the agent's answer: "{" where "[" should be`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []string
			q := cli.Page{Path: control.DNSTablePath, Output: "table", Print: printHosts}
			if err := q.Ask(t.Context(), answers(tc.page, &asked), io.Discard); err == nil || err.Error() != tc.want {
				t.Errorf("error %v\n want %s", err, tc.want)
			}
			if want := "GET " + control.DNSTablePath; !slices.Equal(asked, []string{want}) {
				t.Errorf("the agent got %q, want %q", asked, want)
			}
		})
	}
}
