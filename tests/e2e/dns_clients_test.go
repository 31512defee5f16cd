package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// appUser is the application: any user but the agent's.
const appUser = 1000

// lookupSource is a program that prints the addresses of its arguments, one a line; behind -c
// their canonical names.
const lookupSource = `#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
	int canonical = argc > 1 && !strcmp(argv[1], "-c");
	for (int i = 1 + canonical; i < argc; i++) {
		struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_CANONNAME}, *list, *a;
		int err = getaddrinfo(argv[i], "80", &hints, &list);
		if (err) {
			printf("%s: %s\n", argv[i], gai_strerror(err));
			return 1;
		}
		if (canonical) {
			printf("%s\n", list->ai_canonname);
			continue;
		}
		for (a = list; a; a = a->ai_next) {
			char text[INET6_ADDRSTRLEN];
			void *addr = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
			                                     : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
			printf("%s\n", inet_ntop(a->ai_family, addr, text, sizeof text));
		}
	}
	return 0;
}
`

// TestDNSClients asks with the resolvers that applications have: each gets the VIPs of a mesh name,
// by its short forms too, and the addresses of a name outside, of both families.
func TestDNSClients(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{
		"mesh.yaml": documents(aliyun, static("v4", "v4.example", 81, "HTTP", "198.51.100.12", 8012), headless),
	}})
	mesh := []string{p.vip(t, "aliyun.com", dns.TypeA).String(), p.vip(t, "aliyun.com", dns.TypeAAAA).String()}
	for name, run := range map[string]func(*testing.T, *pod, []string){
		"glibc": glibcClient, "musl": muslClient, "Go": goClient, "A and AAAA from one socket": pairClient,
		"dig": digClient, "kdig": kdigClient,
	} {
		t.Run(name, func(t *testing.T) { run(t, p, mesh) })
	}
}

// headless has several addresses of its own, which DNS gives out all.
const headless = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: headless}
spec:
  hosts: [headless.example]
  addresses: [10.1.0.1, 10.1.0.2, 10.1.0.3]
  location: MESH_EXTERNAL
  ports: [{number: 80, name: tcp, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 198.51.100.13}]
`

var plain = []string{"198.51.100.40", "2001:db8::40"}

// app runs a command as the application, in a container of its own file system and resolv.conf.
func app(t *testing.T, p *pod, argv ...string) string {
	t.Helper()
	got := p.c.Run(t, lab.As{UID: appUser}, argv...)
	if got.Code != 0 {
		t.Fatalf("%v: %v", argv, got)
	}
	return got.Stdout
}

// sameAddrs compares lists of addresses without their order.
func sameAddrs(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Compact(slices.Sorted(slices.Values(got))), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func glibcClient(t *testing.T, p *pod, mesh []string) {
	addresses := func(name string) (list []string) {
		for line := range strings.Lines(app(t, p, "getent", "ahosts", name)) {
			list = append(list, strings.Fields(line)[0])
		}
		return list
	}
	sameAddrs(t, "mesh", addresses("aliyun.com"), mesh)
	sameAddrs(t, "absolute", addresses("aliyun.com."), mesh)
	sameAddrs(t, "with a search domain", addresses("aliyun.com.default.svc.cluster.local"), mesh)
	sameAddrs(t, "outside", addresses("plain.example"), plain)
	sameAddrs(t, "headless", addresses("headless.example"), []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"})
	if got := app(t, p, "getent", "hosts", mesh[0]); !strings.Contains(got, "aliyun.com") {
		t.Errorf("the name of the VIP %s: %q", mesh[0], got)
	}
}

func muslClient(t *testing.T, p *pod, mesh []string) {
	program := buildLookup(t, p, "musl-gcc")
	lookup := func(name string) []string { return strings.Fields(app(t, p, program, name)) }
	sameAddrs(t, "mesh", lookup("aliyun.com"), mesh)
	sameAddrs(t, "outside", lookup("plain.example"), plain)
	// NXDOMAIN to one of the two questions would end it all: musl asks no other server then.
	sameAddrs(t, "headless", lookup("headless.example"), []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"})
}

// buildLookup builds lookupSource with a compiler, and returns where the pod has the program.
func buildLookup(t *testing.T, p *pod, compiler string) string {
	t.Helper()
	name := compiler + "-lookup"
	source, binary := filepath.Join(t.TempDir(), "lookup.c"), filepath.Join(p.c.HostConfig, name)
	must(t, os.WriteFile(source, []byte(lookupSource), 0o644))
	if out, err := exec.Command(compiler, "-static", "-o", binary, source).CombinedOutput(); err != nil {
		t.Fatalf("build a program with %s (Debian: gcc, musl-tools): %v: %s", compiler, err, out)
	}
	must(t, os.Chmod(binary, 0o755))
	return lab.ConfigMount + "/" + name
}

func goClient(t *testing.T, p *pod, mesh []string) {
	r := net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return p.Pod.Dial(ctx, network, net.JoinHostPort(lab.NameServer, "53"))
	}}
	for name, want := range map[string][]string{"aliyun.com.": mesh, "plain.example.": plain, "headless.example.": {"10.1.0.1", "10.1.0.2", "10.1.0.3"}} {
		got, err := r.LookupHost(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		sameAddrs(t, name, got, want)
	}
	if got, err := r.LookupCNAME(t.Context(), "aliyun.com.default.svc.cluster.local."); err != nil || got != "aliyun.com." {
		t.Errorf("canonical name %q, %v, want the host's", got, err)
	}
	if got, err := r.LookupAddr(t.Context(), mesh[0]); err != nil || !slices.Contains(got, "aliyun.com.") {
		t.Errorf("the name of the VIP %s: %v, %v", mesh[0], got, err)
	}
}

// pairClient sends A and AAAA at once from one socket, as Java's (Netty's) and musl's resolvers do:
// both are answered, also where one is forwarded; the order does not matter.
func pairClient(t *testing.T, p *pod, mesh []string) {
	const rounds = 50
	for i := range rounds {
		name, want := "aliyun.com.", mesh
		if i%2 == 1 {
			name, want = "plain.example.", plain
		}
		got, err := askPair(t, p.Pod, name)
		must(t, err)
		sameAddrs(t, name, got, want)
	}
}

func askPair(t *testing.T, n *lab.Namespace, name string) (addrs []string, err error) {
	c, err := n.Dial(t.Context(), "udp", net.JoinHostPort(lab.NameServer, "53"))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(lab.Deadline))
	conn := &dns.Conn{Conn: c}
	asked := map[uint16]uint16{}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := new(dns.Msg).SetQuestion(name, qtype)
		asked[m.Id] = qtype
		if err := conn.WriteMsg(m); err != nil {
			return nil, err
		}
	}
	for range 2 {
		m, err := conn.ReadMsg()
		if err != nil {
			return nil, fmt.Errorf("%d answers of 2: %w", 2-len(asked), err)
		}
		if len(m.Question) != 1 || asked[m.Id] != m.Question[0].Qtype {
			return nil, fmt.Errorf("an answer to no question of ours: %v", m)
		}
		delete(asked, m.Id)
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				addrs = append(addrs, rr.A.String())
			case *dns.AAAA:
				addrs = append(addrs, rr.AAAA.String())
			}
		}
	}
	return addrs, nil
}

// digClient asks in every unusual way that dig knows: whatever the flags, the answer is there, and
// what RFC 6891 and RFC 8906 say about them holds.
func digClient(t *testing.T, p *pod, mesh []string) {
	dig := func(args ...string) string {
		return app(t, p, append([]string{"dig", "+tries=1", "+time=10", "@" + lab.NameServer}, args...)...)
	}
	for _, flags := range []string{
		"", "+noedns", "+edns=0", "+bufsize=512", "+bufsize=4096", "+dnssec", "+dnssec +cdflag", "+adflag", "+noadflag +cdflag",
		"+norecurse", "+tcp", "+tcp +keepopen", "+tcp +dnssec", "+cookie", "+nocookie +nsid", "+subnet=10.0.0.0/8", "+padding=468",
		"+ednsopt=65001:abcd", "+ednsflags=0x40", "+ignore", "+aaflag +zflag", "+keepalive +tcp", "+expire",
	} {
		for name, want := range map[string]string{"aliyun.com": mesh[0], "AliYun.COM": mesh[0], "plain.example": plain[0]} {
			out := dig(append(strings.Fields(flags), name, "A")...)
			if !strings.Contains(out, "status: NOERROR") || !strings.Contains(out, want) {
				t.Errorf("dig %s %s: want NOERROR with %s:\n%s", flags, name, want, out)
			}
			if strings.Contains(out, "WARNING") && !strings.Contains(flags, "norecurse") {
				t.Errorf("dig %s %s warns:\n%s", flags, name, out)
			}
			if owner := name + ".\t"; !strings.Contains(out, owner) {
				t.Errorf("dig %s %s: no record of %q:\n%s", flags, name, owner, out)
			}
		}
	}
	for _, tc := range []struct{ args, want string }{
		{"+edns=1 +noednsnegotiation aliyun.com A", "status: BADVERS"},
		{"+opcode=STATUS aliyun.com A", "status: NOTIMP"},
		{"+opcode=UPDATE aliyun.com A", "status: NOTIMP"},
		{"+header-only", "status: FORMERR"},
		{"aliyun.com AXFR +noedns +onesoa", "Transfer failed"},
		{"aliyun.com ANY", "status: NOERROR"},
		{"-c CH version.bind TXT", "status: REFUSED"},
		{"-c ANY aliyun.com A", "status: REFUSED"},
		{"aliyun.com TYPE249", "status: NOTIMP"},
		{"localhost A", "127.0.0.1"},
		{"x.localhost.svc.cluster.local AAAA", "::1"},
		{"aliyun.com TYPE65", "status: NOERROR"},
		{"v4.example TXT", "ANSWER: 0, AUTHORITY: 1"},
		{"headless.example AAAA", "ANSWER: 0, AUTHORITY: 1"},
		{"headless.example A", "ANSWER: 3"},
		{"-x " + mesh[0], "aliyun.com."},
		{"-x " + mesh[1], "aliyun.com."},
	} {
		if out := dig(strings.Fields(tc.args)...); !strings.Contains(out, tc.want) {
			t.Errorf("dig %s: want %q:\n%s", tc.args, tc.want, out)
		}
	}
}

// kdigClient asks several questions over one connection.
func kdigClient(t *testing.T, p *pod, mesh []string) {
	out := app(t, p, "kdig", "@"+lab.NameServer, "+tcp", "+keepopen", "+short",
		"aliyun.com", "A", "plain.example", "A", "aliyun.com", "AAAA", "plain.example", "AAAA", "headless.example", "A")
	var got []string
	for _, line := range strings.Fields(out) {
		if _, err := netip.ParseAddr(line); err == nil {
			got = append(got, line)
		}
	}
	sameAddrs(t, out, got, slices.Concat(mesh, plain, []string{"10.1.0.1", "10.1.0.2", "10.1.0.3"}))
}
