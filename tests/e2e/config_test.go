package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// badInput is something wrong in the configuration directory.
type badInput struct {
	name string // of the file
	// make puts it there; content is written where make is nil.
	content string
	make    func(t *testing.T, path string)
	// words are what its report has to say. nil: nothing is wrong with it.
	words []string
}

const aliasBomb = `a: &a [x,x,x,x,x,x,x,x,x,x]
b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]
c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]
d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]
e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]
f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]
g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]
h: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g,*g]
i: &i [*h,*h,*h,*h,*h,*h,*h,*h,*h,*h]
`

// hugeFile is what the contract's 100 MB file weighs.
const hugeFile = 100 << 20

// badInputs is the list. Names have the file's in them, so that a report can be found.
func badInputs() []badInput {
	good := entry("e", "bad.example", 80, "TCP", "DNS")
	edit := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	return []badInput{
		{name: "unknown-kind.yaml", content: "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {}\n", words: []string{"Gateway", "ignored"}},
		{name: "no-kind.yaml", content: "hello: world\n", words: []string{"kind"}},
		{name: "restricting-kind.yaml", content: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n", words: []string{"AuthorizationPolicy", "error"}},
		{name: "sidecar-kind.yaml", content: "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\nspec: {}\n", words: []string{"Sidecar", "error"}},
		{name: "unknown-field.yaml", content: edit("  resolution:", "  resolutoin:"), words: []string{"resolutoin"}},
		{name: "wrong-type.yaml", content: edit("number: 80", "number: eighty"), words: []string{"eighty"}},
		{name: "wrong-enum.yaml", content: edit("resolution: DNS", "resolution: MAGIC"), words: []string{"MAGIC"}},
		{name: "wrong-protocol.yaml", content: edit("protocol: TCP", "protocol: XYZ"), words: []string{"XYZ"}},
		{name: "bad-port.yaml", content: edit("number: 80", "number: 65536"), words: []string{"65536"}},
		{name: "bad-host.yaml", content: edit("bad.example", "bad example"), words: []string{"bad example"}},
		{name: "bad-cidr.yaml", content: edit("  resolution:", "  addresses: [10.0.0.0/40]\n  resolution:"), words: []string{"10.0.0.0/40"}},
		{name: "no-hosts.yaml", content: edit(`["bad.example"]`, "[]"), words: []string{"hosts"}},
		{name: "port-twice.yaml", content: edit("ports: [", "ports: [{number: 80, name: other, protocol: HTTP}, "), words: []string{"80"}},
		{name: "duplicate-host.yaml", content: documents(entry("d1", "dup.example", 80, "TCP", "DNS"), entry("d2", "dup.example", 80, "HTTP", "DNS")), words: []string{"dup.example"}},
		{name: "second-document.yaml", content: documents(entry("ok", "second.example", 80, "TCP", "DNS"), edit("number: 80", "number: -1")), words: []string{"-1"}},
		{name: "syntax.yaml", content: "apiVersion: [\n", words: []string{"yaml"}},
		{name: "not-yaml.yaml", content: "\x00\x01\x02\xff\xfe", words: anything()},
		{name: "json.json", content: `{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "spec": {`, words: anything()},
		{name: "alias-bomb.yaml", content: aliasBomb, words: anything()},
		{name: "deep.yaml", content: strings.Repeat("[", 200_000), words: anything()},
		{name: "empty.yaml", content: ""},
		{name: "comments.yaml", content: "# nothing\n---\n---\n"},
		{name: "unreadable.yaml", make: makeUnreadable, words: []string{"permission denied"}},
		{name: "fifo.yaml", make: makeFIFO, words: anything()},
		{name: "directory.yaml", make: func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o755)) }, words: anything()},
		{name: "loop.yaml", make: func(t *testing.T, path string) { must(t, os.Symlink(filepath.Base(path), path)) }, words: anything()},
		{name: "dangling.yaml", make: func(t *testing.T, path string) { must(t, os.Symlink("nowhere", path)) }, words: anything()},
		{name: "device.yaml", make: func(t *testing.T, path string) { must(t, os.Symlink("/dev/zero", path)) }, words: anything()},
		{name: "huge.yaml", make: makeHuge, words: anything()},
	}
}

// anything demands a report that names the file, whatever it says.
func anything() []string { return []string{} }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func makeUnreadable(t *testing.T, path string) {
	must(t, os.WriteFile(path, []byte(aliyunHTTP), 0o600)) // root's
}

func makeFIFO(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o644)) }

func makeHuge(t *testing.T, path string) {
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	chunk := []byte(strings.Repeat("# a comment of sixty-four bytes, just to make the file larger.\n", 1<<14))
	for written := 0; written < hugeFile; written += len(chunk) {
		_, err := f.Write(chunk)
		must(t, err)
	}
}

func (b badInput) put(t *testing.T, c *lab.Container) {
	t.Helper()
	if b.make == nil {
		c.Write(t, b.name, b.content)
		return
	}
	must(t, os.MkdirAll(c.ConfigDir(), 0o755))
	b.make(t, filepath.Join(c.ConfigDir(), b.name))
}

// TestBadDocuments puts one wrong thing after the other beside a good file: each is named with
// file and reason in log and configz, a good change that comes with it applies, and what was good
// stays.
func TestBadDocuments(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"good.yaml": documents(aliyun, aliyunHTTP)}})
	serveAliyun(t, p)
	vip := p.vip(t, "aliyun.com", dns.TypeA)
	for i, bad := range badInputs() {
		t.Run(bad.name, func(t *testing.T) {
			position := p.agent.Log.Len()
			bad.put(t, p.c)
			host := fmt.Sprintf("marker-%d.example", i)
			p.c.Write(t, "marker.yaml", entry("marker", host, 80, "HTTP", "DNS"))
			eventually(t, "the good change applies", func() error { return vipError(p, host) })
			if bad.words != nil {
				eventually(t, "configz names the file", func() error { return configz(p, append(bad.words, bad.name)...) })
				p.agent.Log.WaitForAfter(t, position, `[^\n]*`+strings.ReplaceAll(bad.name, ".", `\.`))
			}
			if got := p.vip(t, "aliyun.com", dns.TypeA); got != vip {
				t.Errorf("the VIP of a good host moved from %v to %v", vip, got)
			}
			if got := get(t, p.dialHost(t, "aliyun.com", 80), "aliyun.com"); got["server"] != "aliyun" {
				t.Errorf("a good host: %v", got)
			}
			if rss := rssOf(t, p.agent.PID()); rss > 64<<20 {
				t.Errorf("the agent's RSS is %d MiB", rss>>20)
			}
			p.c.Remove(t, bad.name)
			eventually(t, "configz forgets the file", func() error {
				if configz(p, bad.name) == nil {
					return fmt.Errorf("%s is still there", bad.name)
				}
				return nil
			})
		})
	}
}

// configz returns nil when the agent's report has all the words.
func configz(p *pod, words ...string) error {
	status, body, err := p.Pod.Get("http://127.0.0.1:15020/debug/configz")
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("GET /debug/configz: %d, %v", status, err)
	}
	return contains(body, words...)
}

// rssOf returns a process's resident memory in bytes.
func rssOf(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	var kib int
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// serveAliyun serves HTTP at both addresses of aliyun.com.
func serveAliyun(t *testing.T, p *pod) {
	t.Helper()
	for _, ip := range outside["aliyun.com"] {
		lab.ServeHTTP(t, p.Out.Listen(t, net.JoinHostPort(ip, "80")), "aliyun")
	}
}

// TestBadDocumentsAtStart starts an agent with everything that is wrong at once. Documents that
// restrict access stop a start, unless --allowIgnored says otherwise.
func TestBadDocumentsAtStart(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noAgent: true})
	for _, bad := range badInputs() {
		bad.put(t, p.c)
	}
	p.c.Write(t, "good.yaml", aliyunHTTP)
	serveAliyun(t, p)
	refused := p.c.StartAgent(t, lab.AgentOptions{})
	code := refused.Wait(t, lab.Deadline)
	if err := contains(refused.Log.String(), "restricting-kind.yaml", "sidecar-kind.yaml", "allowIgnored"); code != 1 || err != nil {
		t.Errorf("with kinds that restrict access: exit status %d; %v", code, err)
	}
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: []string{"--allowIgnored"}})
	p.agent.WaitReady(t)
	if got := get(t, p.dialHost(t, "aliyun.com", 80), "aliyun.com"); got["server"] != "aliyun" {
		t.Errorf("the good host: %v", got)
	}
	for _, bad := range badInputs() {
		words := append([]string{bad.name}, bad.words...)
		if bad.words == nil || strings.HasSuffix(bad.name, "-kind.yaml") {
			words = words[:1] // allowed, or nothing is wrong with it
		}
		if err := configz(p, words...); bad.words != nil && err != nil {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
}

// TestDirectoryVanishes takes the whole directory away and brings it back with something new.
func TestDirectoryVanishes(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"one.yaml": entry("one", "one.example", 3306, "TCP", "DNS")}})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.22:3306"), lab.Banner("I am two"))
	position := p.agent.Log.Len()
	must(t, os.RemoveAll(p.c.ConfigDir()))
	p.agent.Log.WaitForAfter(t, position, `/config/mesh`)
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n") // the last good state stays
	p.c.Write(t, "two.yaml", documents(entry("one", "one.example", 3306, "TCP", "DNS"), entry("two", "two.example", 3306, "TCP", "DNS")))
	eventually(t, "the new directory is read", func() error { return vipError(p, "two.example") })
	expect(t, p.dialHost(t, "two.example", 3306), "I am two\r\n")
}

// vipError returns nil when host resolves to a VIP now.
func vipError(p *pod, host string) error {
	addrs, err := p.Pod.Lookup(host, dns.TypeA)
	if err != nil {
		return err
	}
	if len(addrs) == 1 && netip.MustParsePrefix("240.240.0.0/16").Contains(addrs[0]) {
		return nil
	}
	return fmt.Errorf("%s resolves to %v", host, addrs)
}

// TestChanges replaces the directory the way kubelet updates a ConfigMap, while it is in use: the
// ..data link is swapped.
func TestChanges(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noAgent: true})
	dir := p.c.ConfigDir()
	publish := func(version, content string) {
		must(t, os.MkdirAll(filepath.Join(dir, "..v"+version), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "..v"+version, "mesh.yaml"), []byte(content), 0o644))
		must(t, os.Symlink("..v"+version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("1", entry("one", "one.example", 3306, "TCP", "DNS"))
	must(t, os.Symlink("..data/mesh.yaml", filepath.Join(dir, "mesh.yaml")))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.22:3306"), lab.Banner("I am two"))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")

	publish("2", entry("two", "two.example", 3306, "TCP", "DNS"))
	must(t, os.RemoveAll(filepath.Join(dir, "..v1")))
	eventually(t, "a host is added", func() error { return vipError(p, "two.example") })
	// A name never resolves to a VIP that Envoy cannot route yet.
	expect(t, p.dialHost(t, "two.example", 3306), "I am two\r\n")
	eventually(t, "a host is removed", func() error {
		addrs, err := p.Pod.Lookup("one.example", dns.TypeA)
		if err == nil && len(addrs) == 1 && addrs[0].String() == outside["one.example"][0] {
			return nil
		}
		return fmt.Errorf("one.example resolves to %v (%v)", addrs, err)
	})
}
