package e2e_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// A pod's resolver makes names below each of these of a short one.
const searching = "nameserver " + lab.NameServer + "\n" +
	"search default.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n"

// Hosts of the mesh that have a namesake elsewhere, by which a search domain would lead there.
var namesakes = map[string]string{
	"db": "db.corp.example", "mongo.prod": "mongo.prod.svc.cluster.local", "api.example.com": "api.example.com.corp.example",
	"in.default.svc.cluster.local": "in.default.svc.cluster.local.corp.example", "a.b.c.d.e.example": "a.b.c.d.e.example.corp.example",
}

// TestSearchDomains looks hosts of the mesh up by the names that applications write: the resolvers of
// glibc and musl have addresses and canonical name from the agent alone, and the full name of something else is answered by
// the server that knows it.
func TestSearchDomains(t *testing.T) {
	t.Parallel()
	docs, port := []string{}, 8100
	for host := range namesakes {
		docs, port = append(docs, static("h"+strings.ReplaceAll(host, ".", "-"), host, port, "TCP", "198.51.100.12", 8012)), port+1
	}
	p := newPod(t, podOptions{container: lab.ContainerOptions{ResolvConf: searching}, files: map[string]string{"mesh.yaml": documents(docs...)}})
	for _, namesake := range namesakes {
		p.dns.Set(namesake, "198.51.100.99")
	}
	for _, compiler := range []string{"gcc", "musl-gcc"} {
		program := buildLookup(t, p, compiler)
		const rounds, mostPerLookup = 10, 0.05
		for range rounds {
			for host := range namesakes {
				vips := []string{p.vip(t, host, dns.TypeA).String(), p.vip(t, host, dns.TypeAAAA).String()}
				sameAddrs(t, compiler+": "+host, strings.Fields(app(t, p, program, host)), vips)
			}
		}
		for host := range namesakes { // what Kerberos makes a service's name of
			if got := strings.TrimSpace(app(t, p, program, "-c", host)); got != host {
				t.Errorf("%s: the canonical name of %s is %s", compiler, host, got)
			}
		}
		asked := 0
		for host := range namesakes {
			asked += p.dns.Asked(host)
		}
		if most := float64(rounds*len(namesakes)) * mostPerLookup; float64(asked) > most {
			t.Errorf("%s: the real server was asked %d times, %.0f are allowed", compiler, asked, most)
		}
	}
	for host, namesake := range namesakes {
		got, err := p.Pod.Lookup(namesake, dns.TypeA)
		if err != nil || len(got) != 1 || got[0].String() != "198.51.100.99" {
			t.Errorf("%s: %v, %v, want what the real server says, not the VIP of %s", namesake, got, err, host)
		}
	}
	if got := strings.Fields(app(t, p, "getent", "ahostsv4", "db.corp.example")); !slices.Contains(got, "198.51.100.99") {
		t.Errorf("db.corp.example: %v", got)
	}
}

// TestAddressesOfAnotherFamily has a host with an IPv6 address only, in a pod that serves IPv4 alone: its address is
// answered as it is declared, and the wildcard above it, another server's, for neither family.
func TestAddressesOfAnotherFamily(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		agent: lab.AgentOptions{Env: []string{"ISTIO_DUAL_STACK=false"}},
		files: map[string]string{"mesh.yaml": documents(aliyun,
			entry("wild", "*.only.example", 8080, "TCP", "NONE")+"  addresses: [198.51.100.50]\n",
			static("six", "six.only.example", 8080, "TCP", "198.51.100.12", 8012)+"  addresses: ['2001:db8::77']\n")},
	})
	for _, tc := range []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"six.only.example", dns.TypeAAAA, []string{"2001:db8::77"}}, {"six.only.example", dns.TypeA, nil},
		{"any.only.example", dns.TypeA, []string{"198.51.100.50"}}, {"aliyun.com", dns.TypeAAAA, nil},
	} {
		got, err := p.Pod.Lookup(tc.name, tc.qtype)
		must(t, err)
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if !slices.Equal(text, tc.want) {
			t.Errorf("%s %s: %v, want %v", tc.name, dns.TypeToString[tc.qtype], text, tc.want)
		}
	}
	p.vip(t, "aliyun.com", dns.TypeA)
}
