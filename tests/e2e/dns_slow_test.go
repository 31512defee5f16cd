package e2e_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// caresSource is a program that prints the first address of its argument.
const caresSource = `#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/select.h>

static void answered(void *arg, int status, int timeouts, struct hostent *host) {
	char text[INET6_ADDRSTRLEN];
	if (status != ARES_SUCCESS)
		printf("%s\n", ares_strerror(status));
	else
		printf("%s\n", inet_ntop(host->h_addrtype, host->h_addr_list[0], text, sizeof text));
	*(int *)arg = status != ARES_SUCCESS;
}

int main(int argc, char **argv) {
	ares_channel channel;
	int failed = 1;
	if (argc != 2 || ares_library_init(ARES_LIB_INIT_ALL) || ares_init(&channel))
		return 2;
	ares_gethostbyname(channel, argv[1], AF_INET, answered, &failed);
	for (;;) {
		fd_set in, out;
		struct timeval left;
		FD_ZERO(&in);
		FD_ZERO(&out);
		int n = ares_fds(channel, &in, &out);
		if (n == 0)
			return failed;
		select(n, &in, &out, NULL, ares_timeout(channel, NULL, &left));
		ares_process(channel, &in, &out);
	}
}
`

// slowTimes are how long the name server takes: more than a server is waited for before it is
// asked again, just less than resolvers wait for it, and more than that.
var slowTimes = []time.Duration{time.Second, 2300 * time.Millisecond, 3 * time.Second, 4500 * time.Millisecond, 6 * time.Second}

// resolverTime is what every resolver waits for at least: glibc, Go and c-ares one try of theirs, musl
// all of them.
const resolverTime = 5 * time.Second

// TestSlowNameServer asks a slow name server with the resolvers that applications have, through
// the agent and, as the agent's user, without it: what succeeds without must succeed with it.
func TestSlowNameServer(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{})
	musl := buildLookup(t, p, "musl-gcc")
	for name, lookup := range map[string]func(t *testing.T, as lab.As, host string) error{
		"glibc":  byCommand(p, "getent", "ahostsv4"),
		"musl":   byCommand(p, musl),
		"c-ares": byCommand(p, buildCares(t, p)),
		"Go":     p.goLookup,
	} {
		for _, delay := range slowTimes {
			t.Run(fmt.Sprintf("%s/%v", name, delay), func(t *testing.T) {
				t.Parallel()
				p.lookUpSlowly(t, strings.ToLower(name), delay, lookup)
			})
		}
	}
}

// lookUpSlowly looks names up that take so long. That is repeated when it fails, for resolvers
// do not wait for a machine that stands still.
func (p *pod) lookUpSlowly(t *testing.T, client string, delay time.Duration, lookup func(*testing.T, lab.As, string) error) {
	const tries = 3
	for try := range tries {
		host := fmt.Sprintf("%s-%d-%d.example.", client, delay.Milliseconds(), try)
		p.dns.Set(host, "198.51.100.99")
		p.dns.SetDelay(host, delay)
		with := lookup(t, lab.As{UID: appUser}, host)
		if with == nil {
			return
		}
		without := delay < resolverTime || lookup(t, lab.As{UID: lab.AgentUID}, host) == nil
		if !without {
			t.Logf("no answer after %v without the agent either", delay)
			return
		}
		t.Logf("%s: %v", host, with)
	}
	t.Errorf("a name server that takes %v is as good as none with the agent, and answers without it", delay)
}

// byCommand looks a name up with a program, which prints its address.
func byCommand(p *pod, argv ...string) func(*testing.T, lab.As, string) error {
	return func(t *testing.T, as lab.As, host string) error {
		got := p.c.Run(t, as, append(argv, host)...)
		if got.Code != 0 || !strings.HasPrefix(got.Stdout, "198.51.100.99") {
			return fmt.Errorf("%v", got)
		}
		return nil
	}
}

// goLookup looks a name up with Go's resolver, always as the application.
func (p *pod) goLookup(t *testing.T, _ lab.As, host string) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return p.Pod.Dial(ctx, network, net.JoinHostPort(lab.NameServer, "53"))
	}}
	_, err := r.LookupNetIP(t.Context(), "ip4", host)
	return err
}

// buildCares builds caresSource, and returns where the pod has the program.
func buildCares(t *testing.T, p *pod) string {
	t.Helper()
	const name = "cares-lookup"
	source, binary := filepath.Join(t.TempDir(), "cares.c"), filepath.Join(p.c.HostConfig, name)
	must(t, os.WriteFile(source, []byte(caresSource), 0o644))
	if out, err := exec.Command("gcc", "-o", binary, source, "-lcares").CombinedOutput(); err != nil {
		t.Fatalf("build a program with c-ares (Debian: gcc, libc-ares-dev): %v: %s", err, out)
	}
	must(t, os.Chmod(binary, 0o755))
	return lab.ConfigMount + "/" + name
}
