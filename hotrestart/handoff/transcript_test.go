package handoff

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"understudy.mesh/hotrestart"
)

var recordHandoff = flag.Bool("record-handoff", false, "write testdata/v<protocol>/ anew; those of released protocols are never changed")

// A transcript is what the two sides of one hand-off said, seen by the child: "> "
// from it, "< " to it, the number of descriptors, the frame in hex. Lines with # are for
// people.
type transcriptLine struct {
	sent bool
	fds  int
	raw  []byte
}

func (l transcriptLine) frame(t *testing.T) frame {
	t.Helper()
	header, err := parseFrameHeader([frameHeaderSize]byte(l.raw[:frameHeaderSize]))
	if err != nil {
		t.Fatal(err)
	}
	payload := l.raw[frameHeaderSize:]
	if header.head+header.body != len(payload) || header.sockets != l.fds {
		t.Fatalf("a frame of %d bytes and %d sockets says %+v", len(l.raw), l.fds, header)
	}
	return frame{version: header.version, kind: header.kind, head: payload[:header.head], body: payload[header.head:]}
}

func readTranscript(t *testing.T, path string) (lines []transcriptLine) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for scanner := bufio.NewScanner(bytes.NewReader(text)); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) != 3 || fields[0] == "#" {
			continue
		}
		fds, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, transcriptLine{fields[0] == ">", fds, raw})
	}
	return lines
}

// recordedParent is the old generation of every transcript.
func recordedParent(t *testing.T, path string) *oldGeneration {
	old := startParent(t, path, "old", func(o *oldGeneration) {
		o.state = State{"vips": []byte("240.240.0.1 a.example"), "dns": {0, 1, 2, 0xff}}
		o.late = State{"vips": []byte("240.240.0.1 a.example\n240.240.0.2 b.example")}
	})
	old.listen("agent status tcp 0")
	old.listen(hotrestart.EnvoySocketName("tcp://0.0.0.0:15001", 0))
	return old
}

func TestRecordTranscript(t *testing.T) {
	if !*recordHandoff {
		return // TestReplay* read what is there
	}
	path := t.TempDir()
	recordedParent(t, path)
	var mu sync.Mutex
	var text strings.Builder
	watch := func(sent bool, raw []byte, fds int) {
		mu.Lock()
		defer mu.Unlock()
		sign := map[bool]string{true: ">", false: "<"}[sent]
		line := transcriptLine{sent, fds, raw}
		f := line.frame(t)
		fmt.Fprintf(&text, "# %s %s\n%s %d %x\n", f.kind, f.head, sign, fds, raw)
	}
	c, err := dial(testContext(t), openTestDir(t, path, "new"), "old", dialOptions{timing: quick(), protocols: ownProtocols(), watch: watch})
	if err != nil {
		t.Fatal(err)
	}
	var mine hotrestart.Sockets
	defer mine.Close()
	followTranscript(t, c, &mine)
	c.Close()
	file := filepath.Join("testdata", fmt.Sprintf("v%d", currentProtocol), "takeover.txt")
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// followTranscript is the child of every transcript after Dial.
func followTranscript(t *testing.T, c *Client, into *hotrestart.Sockets) {
	t.Helper()
	ctx := testContext(t)
	takeOver(t, c, into)
	if d, _, err := c.Next(ctx); err != nil || d.Left != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
	if err := c.link.send(msgTerminate, emptyHead{}); err != nil { // as earlier releases were able to
		t.Fatal(err)
	}
	if d, _, err := c.Next(ctx); err != nil || !d.Done {
		t.Fatalf("%+v, %v", d, err)
	}
}

func transcripts(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/v*/takeover.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	return files
}

// A child of every protocol ever released takes over from this release.
func TestReplayChild(t *testing.T) {
	for _, file := range transcripts(t) {
		t.Run(file, func(t *testing.T) {
			noLeaks(t)
			path := t.TempDir()
			old := recordedParent(t, path)
			conn, err := openTestDir(t, path, "replay").connect(testContext(t), "old")
			if err != nil {
				t.Fatal(err)
			}
			replay(t, conn, readTranscript(t, file), true)
			old.expect(Settled)
			if e := awaitEnded(old); e.outcome != handedOver {
				t.Errorf("%+v", e)
			}
		})
	}
}

// This release takes over from a parent of every protocol ever released.
func TestReplayParent(t *testing.T) {
	for _, file := range transcripts(t) {
		t.Run(file, func(t *testing.T) {
			noLeaks(t)
			ours, theirs := socketPair(t)
			done := make(chan struct{})
			lines := readTranscript(t, file)
			go func() { defer close(done); replay(t, theirs, lines, false) }()
			c := &Client{link: newLink(ours, quick(), 1, nil), timing: quick(), stage: childGreeting}
			ctx := testContext(t)
			if err := c.greet(ctx, testIdentity("new"), ownProtocols()); err != nil {
				t.Fatal(err)
			}
			if err := c.load(ctx); err != nil {
				t.Fatal(err)
			}
			if got := string(c.State()["vips"]); c.Parent().ID != "old" || got != "240.240.0.1 a.example" {
				t.Errorf("parent %+v, vips %q", c.Parent(), got)
			}
			var mine hotrestart.Sockets
			defer mine.Close()
			followTranscript(t, c, &mine)
			if mine.Len() != 2 {
				t.Errorf("sockets: %v", mine.Names())
			}
			<-done
			c.Close()
		})
	}
}

// replay plays one side of a transcript on conn, and compares what the other says.
func replay(t *testing.T, conn *net.UnixConn, lines []transcriptLine, asChild bool) {
	l := newLink(conn, quick(), 1, nil)
	defer l.close()
	var stand hotrestart.Sockets // for the descriptors
	defer stand.Close()
	o := &oldGeneration{t: t, sockets: &stand}
	for i, line := range lines {
		want := line.frame(t)
		if line.sent == asChild {
			for range line.fds {
				o.listen(fmt.Sprint(stand.Len()))
			}
			stand.Each(func(_ string, fd int) error {
				if len(want.fds) < line.fds {
					want.fds = append(want.fds, fd)
				}
				return nil
			})
			l.setVersion(want.version)
			if err := l.sendFrame(want); err != nil {
				t.Errorf("line %d, %s: %v", i, want.kind, err)
				return
			}
			continue
		}
		got, ok := <-l.frames
		if !ok {
			t.Errorf("line %d, %s: %v", i, want.kind, l.err)
			return
		}
		compareFrames(t, i, got, want, line.fds)
		got.closeDescriptors()
	}
}

// compareFrames wants all that was recorded; what a later release adds may be there too.
func compareFrames(t *testing.T, i int, got, want frame, fds int) {
	if got.kind != want.kind || !bytes.Equal(got.body, want.body) || len(got.fds) != fds {
		t.Errorf("line %d: %s with %d bytes and %d sockets, recorded %s with %d and %d", i, got.kind, len(got.body), len(got.fds), want.kind, len(want.body), fds)
	}
	var a, b map[string]any
	if err := json.Unmarshal(got.head, &a); err != nil {
		t.Errorf("line %d, %s: %v", i, got.kind, err)
	}
	if err := json.Unmarshal(want.head, &b); err != nil {
		t.Errorf("line %d, %s: %v", i, want.kind, err)
	}
	for key, recorded := range b {
		if !reflect.DeepEqual(a[key], recorded) {
			t.Errorf("line %d, %s: %s is %v, recorded %v", i, got.kind, key, a[key], recorded)
		}
	}
}

func TestServerWithoutRun(t *testing.T) {
	noLeaks(t)
	d, err := OpenDir(t.TempDir(), testIdentity("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // the place is free again
		s, err := NewServer(d, Report{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewServer(d, Report{}, slog.New(slog.DiscardHandler)); err == nil {
			t.Error("one ID, two places")
		}
		if err := s.place.leave(); err != nil {
			t.Error(err)
		}
	}
	if entries, _ := os.ReadDir(d.path); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}
