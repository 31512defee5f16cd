package handoff

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
)

// rawConnection is a peer that writes what it likes.
func rawConnection(t testing.TB, d *Dir, id string) *net.UnixConn {
	t.Helper()
	conn, err := d.connect(testContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

func encode(t testing.TB, kind messageKind, head any, fds int) []byte {
	t.Helper()
	f, err := newFrame(kind, head)
	if err != nil {
		t.Fatal(err)
	}
	f.version, f.fds = 1, make([]int, fds)
	raw, err := appendFrame(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Whatever comes, the old generation closes it, keeps nothing, and hands over to the next.
func TestHostilePeers(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.server.timing.frame, o.server.timing.hello = 200*time.Millisecond, 200*time.Millisecond
	})
	hello := encode(t, msgHello, helloHead{1, 1, testIdentity("bad"), nil}, 0)
	withSockets := func(n int, kind messageKind, announced int) func(*net.UnixConn) {
		return func(c *net.UnixConn) {
			files := make([]int, n)
			for i := range files {
				files[i] = 0
			}
			c.WriteMsgUnix(encode(t, kind, emptyHead{}, announced), unix.UnixRights(files...), nil)
		}
	}
	huge := bytes.Clone(hello[:frameHeaderSize])
	binary.BigEndian.PutUint32(huge[8:], maxPayload)
	binary.BigEndian.PutUint32(huge[12:], 1<<32-1)
	for name, act := range map[string]func(*net.UnixConn){
		"nothing":               func(c *net.UnixConn) {},
		"nothing, then the end": func(c *net.UnixConn) { c.CloseWrite() },
		"HTTP":                  func(c *net.UnixConn) { io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
		"zeros":                 func(c *net.UnixConn) { c.Write(make([]byte, 100)) },
		"a truncated header":    func(c *net.UnixConn) { c.Write(hello[:7]) },
		"a truncated frame":     func(c *net.UnixConn) { c.Write(hello[:len(hello)-1]); c.CloseWrite() },
		"a frame that stops":    func(c *net.UnixConn) { c.Write(hello[:len(hello)-1]) },
		"4 GiB":                 func(c *net.UnixConn) { c.Write(huge) },
		"no JSON":               func(c *net.UnixConn) { c.Write(append(bytes.Clone(hello[:len(hello)-1]), '!')) },
		"a wrong type":          func(c *net.UnixConn) { c.Write(encode(t, msgHello, map[string]any{"min": "one"}, 0)) },
		"an evil id":            func(c *net.UnixConn) { c.Write(encode(t, msgHello, helloHead{1, 1, Identity{ID: "../../x"}, nil}, 0)) },
		"the wrong message":     func(c *net.UnixConn) { c.Write(encode(t, msgReady, emptyHead{}, 0)) },
		"a parent's message":    func(c *net.UnixConn) { c.Write(encode(t, msgReleased, emptyHead{}, 0)) },
		"descriptors":           withSockets(3, msgHello, 3),
		"surplus descriptors":   withSockets(3, msgSockets, 2),
		"missing descriptors":   withSockets(3, msgSockets, 4),
		"sockets for a parent":  withSockets(3, msgSockets, 3),
		"too many descriptors":  withSockets(200, msgSockets, 64),
		"an unknown message with descriptors, then nothing": withSockets(3, 200, 3),
	} {
		t.Run(name, func(t *testing.T) {
			c := rawConnection(t, openTestDir(t, path, "hostile"), "old")
			act(c)
			if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "connection reset") {
				t.Errorf("it is not closed: %v", err)
			}
		})
	}
	var mine hotrestart.Sockets
	defer mine.Close()
	takeOver(t, mustDial(t, openTestDir(t, path, "good"), "old"), &mine)
	old.expect(Settled)
}

// What this release does not know is answered, and never the end of a hand-off.
func TestUnknownMessages(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	startParent(t, path, "old")
	var heard []string
	c, err := dial(testContext(t), openTestDir(t, path, "new"), "old", dialOptions{timing: quick(), protocols: ownProtocols(),
		watch: func(sent bool, raw []byte, _ int) {
			if !sent {
				heard = append(heard, messageKind(raw[5]).String())
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []messageKind{0, 21, 255} {
		if err := c.link.sendFrame(frame{kind: kind, head: []byte("not JSON"), body: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.link.send(msgPing, map[string]any{"field of a later release": 1}); err != nil {
		t.Fatal(err)
	}
	var mine hotrestart.Sockets
	defer mine.Close()
	takeOver(t, c, &mine)
	c.Close()
	if got := strings.Count(strings.Join(heard, " "), "unknown"); got != 3 {
		t.Errorf("%d were answered with unknown: %v", got, heard)
	}
	if !strings.Contains(strings.Join(heard, " "), "pong") {
		t.Errorf("the ping has no answer: %v", heard)
	}
}

// 10,000 connections push one another out; a newcomer gets through.
func TestManyConnections(t *testing.T) {
	noLeaks(t)
	path := t.TempDir()
	startParent(t, path, "old")
	d := openTestDir(t, path, "crowd")
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		open := make([]*net.UnixConn, 0, 500)
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for ; n < 10_000; n++ {
			select {
			case <-stop:
			default:
			}
			c, err := d.connect(context.Background(), "old")
			if err != nil {
				t.Error(err)
				return
			}
			if open = append(open, c); len(open) == cap(open) {
				open[0].Close()
				open = append(open[:0], open[1:]...)
			}
		}
	}()
	c := mustDialThrough(t, openTestDir(t, path, "new"))
	var mine hotrestart.Sockets
	defer mine.Close()
	takeOver(t, c, &mine)
	if n := <-done; n != 10_000 {
		t.Errorf("%d connections were made", n)
	}
	close(stop)
}

// mustDialThrough tries again when it was pushed out.
func mustDialThrough(t testing.TB, d *Dir) *Client {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		c, err := dialTest(t, d, "old")
		if err == nil {
			t.Cleanup(c.Close)
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestWrongUID(t *testing.T) {
	switch os.Getenv(handoffRole) {
	case "stranger":
		playStranger(t, os.Getenv(handoffPath))
		return
	case "strange server":
		playStrangeServer(t, os.Getenv(handoffPath))
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to be somebody else")
		}
		t.Skip("needs root to be somebody else")
	}
	noLeaks(t)
	// A directory that a stranger may enter, which OpenDir would close again.
	path, err := os.MkdirTemp("/tmp", "handoff")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(path)
	old := startParent(t, path, "old")
	d := openTestDir(t, path, "new")
	binary := path + "/stranger"
	copyFile(t, "/proc/self/exe", binary)
	for _, name := range []string{path, path + "/understudy-0", path + "/understudy-0/old.sock"} {
		if err := os.Chmod(name, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	stranger := func(role, socket string) *exec.Cmd {
		cmd := exec.Command(binary, "-test.run=^TestWrongUID$")
		cmd.Dir = "/"
		cmd.Env = []string{handoffRole + "=" + role, handoffPath + "=" + path + "/understudy-0/" + socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return cmd
	}
	out, err := stranger("stranger", "old.sock").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "STRANGER heard 0 bytes") {
		t.Errorf("%v: %s", err, out)
	}
	select {
	case e := <-old.seen:
		t.Errorf("the owner heard of it: %v", e.Kind)
	default:
	}
	// And the other way round: a newcomer does not speak to a stranger's server.
	server := stranger("strange server", "strange.sock")
	listens, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	until, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(listens).ReadString('\n'); line != "LISTENS\n" {
		t.Errorf("the stranger's server says %q, %v", line, err)
	}
	if conn, err := d.connect(testContext(t), "strange"); err == nil || !strings.Contains(err.Error(), "runs as uid 65534") {
		t.Errorf("a stranger's server is spoken to: %v, %v", conn, err)
	}
	if err := errors.Join(until.Close(), server.Wait()); err != nil {
		t.Error(err)
	}
	if err := os.Chown(path+"/understudy-0", 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path, testIdentity("new")); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534") {
		t.Error(err)
	}
}

// playStranger says hello as a newcomer does, and tells how much it is answered.
func playStranger(t *testing.T, socket string) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	conn.Write(encode(t, msgHello, helloHead{1, currentProtocol, testIdentity("stranger"), nil}, 0)) // which fails where it is sent away at once
	n, err := conn.Read(make([]byte, 1))
	fmt.Println("STRANGER heard", n, "bytes", err)
}

// playStrangeServer listens until its standard input ends.
func playStrangeServer(t *testing.T, socket string) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fmt.Println("LISTENS")
	io.Copy(io.Discard, os.Stdin)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// socketPair is two ends of one connection.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// writeAndListen is a peer that says data and reads until the other side is through.
func writeAndListen(conn *net.UnixConn, data []byte) {
	defer conn.Close()
	conn.Write(data)
	conn.CloseWrite()
	io.Copy(io.Discard, conn)
}

// FuzzHandoffFrames feeds bytes to a server's session and to a client's step.
func FuzzHandoffFrames(f *testing.F) {
	f.Add(encode(f, msgHello, helloHead{1, 1, testIdentity("new"), nil}, 0))
	f.Add(encode(f, msgInquire, inquireHead{true}, 0))
	f.Add(append(encode(f, msgPing, emptyHead{}, 0), encode(f, 99, emptyHead{}, 0)...))
	f.Add(append(encode(f, msgWelcome, welcomeHead{1, testIdentity("old")}, 0), encode(f, msgStateEnd, stateEndHead{0}, 0)...))
	f.Add(encode(f, msgAbort, abortHead{AbortFailed, "no"}, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := socketPair(t)
		s := &Server{me: testIdentity("old"), log: slog.New(slog.DiscardHandler), timing: quick(), protocols: ownProtocols(), events: make(chan Event, 100)}
		n := newNewcomer(s, ours)
		go writeAndListen(theirs, data)
		n.run(context.Background())

		ours, theirs = socketPair(t)
		c := &Client{link: newLink(ours, quick(), 1, nil), timing: quick(), stage: childGreeting}
		go writeAndListen(theirs, data)
		if c.greet(context.Background(), testIdentity("new"), ownProtocols()) == nil && c.load(context.Background()) == nil && c.State() == nil {
			t.Error("loaded, and no state")
		}
		c.Close()
	})
}

// FuzzHandoffMessages decodes every message from every head.
func FuzzHandoffMessages(f *testing.F) {
	f.Add([]byte(`{"min":1,"max":1,"identity":{"id":"a","started":"2026-01-02T03:04:05Z"}}`), []byte{})
	f.Add([]byte(`{"component":"vips","components":1,"names":["a"],"gone":["b"],"count":1,"reason":"x","role":"serving","details":{}}`), []byte("body"))
	f.Add([]byte(`{"left":-1,"done":true,"future":[[[[]]]]}`), []byte{})
	f.Fuzz(func(t *testing.T, head, body []byte) {
		frame := frame{version: 1, head: head, body: body}
		if h, err := decodeHead[helloHead](frame); err == nil {
			h.Identity.validate()
			negotiate(ownProtocols(), protocolRange{h.Min, h.Max})
			Newer(h.Identity, testIdentity("old"))
		}
		decodeHead[welcomeHead](frame)
		decodeHead[Report](frame)
		decodeHead[Drained](frame)
		decodeHead[inquireHead](frame)
		if h, err := decodeHead[refusedHead](frame); err == nil && len(cleanReason(h.Reason)) > maxReason {
			t.Error("a long reason")
		}
		if h, err := decodeHead[abortHead](frame); err == nil && strings.ContainsAny(cleanReason(h.Reason), "\n\r\x00\x7f") {
			t.Error("a reason that breaks a line")
		}
		var states stateReader
		states.add(frame)
		states.add(frame)
		states.end(frame)
		var sockets socketReader
		var into hotrestart.Sockets
		sockets.add(frame)
		if err := sockets.end(frame, &into); err == nil && into.Len() != 0 {
			t.Error("sockets from nowhere")
		}
		sockets.fresh.Close()
		into.Close()
	})
}

func TestFrameHeader(t *testing.T) {
	good := [frameHeaderSize]byte([]byte("USHO\x01\x02\x03\x00\x00\x00\x00\x04\x00\x00\x00\x05"))
	h, err := parseFrameHeader(good)
	if err != nil || h != (frameHeader{1, 2, 3, 4, 5}) {
		t.Errorf("%+v, %v", h, err)
	}
	for name, change := range map[string]func(b *[frameHeaderSize]byte){
		"magic":    func(b *[frameHeaderSize]byte) { b[0] = 'u' },
		"version":  func(b *[frameHeaderSize]byte) { b[4] = 0 },
		"sockets":  func(b *[frameHeaderSize]byte) { b[6] = maxFrameSockets + 1 },
		"head":     func(b *[frameHeaderSize]byte) { b[9] = 1 },
		"together": func(b *[frameHeaderSize]byte) { b[10], b[14] = 0x80, 0x80 },
		"overflow": func(b *[frameHeaderSize]byte) { b[8], b[12] = 0xff, 0xff },
	} {
		bad := good
		change(&bad)
		if _, err := parseFrameHeader(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	bad := good
	bad[7] = 9 // of a later release
	if _, err := parseFrameHeader(bad); err != nil {
		t.Error(err)
	}
	if _, err := appendFrame(nil, frame{body: make([]byte, maxPayload+1)}); err == nil {
		t.Error("a frame too large was written")
	}
}
