package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// asEnvoy makes the test binary an Envoy, as far as its agent can tell: it answers the
// admin socket, takes every resource, takes part in a hot restart, and listens on one
// port, where it says its name to whoever connects. Its value is a fakeEnvoy as JSON.
const asEnvoy = "UNDERSTUDY_TEST_ENVOY"

// fakeEnvoy says what such an Envoy does.
type fakeEnvoy struct {
	Name, Listen string
	Exits        bool   // at once, with 3
	ExitsOnce    string // the same, unless this file exists, which is made then
	Unready      bool   // its admin never says that it serves
	LongStats    bool   // its counters, and how their names are to be read, are more than a hand-off carries
	Asked        string // a file with how often it was asked for its counters, which is its one counter
	Refuses      string // the name of a cluster or listener
	Counts       string // it counts how often it is asked for counters, and writes that to this file
	Slow         bool   // it is live, but says that it accepts on all its listeners only after SIGUSR1

	asked       atomic.Uint64
	where       string // --socket-path
	id          uint64 // ten times --base-id
	listener    atomic.Pointer[net.TCPListener]
	connections atomic.Int64
	child       atomic.Pointer[net.UnixConn]
	asking      sync.Mutex
	carried     uint64 // what the counter of those before is
	live        atomic.Bool
}

// fakeCounter is the counter of fakeEnvoy.Counts.
const fakeCounter = "asked"

// longName is the length of a counter's name that Envoy's admin still tells.
const longName = 64 << 10

// liveStats is what the admin of an Envoy says that serves.
const liveStats = "server.state: 0\nlistener_manager.workers_started: 1\n" +
	"cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 1\n"

// askedName is that of the counter of a fakeEnvoy with Asked.
const askedName = "asked"

// environ is what an agent hands on for its Envoy to be f.
func (f *fakeEnvoy) environ() []string {
	data, _ := json.Marshal(f)
	return []string{asEnvoy + "=" + string(data)}
}

func runFakeEnvoy(description string, args []string) error {
	f := &fakeEnvoy{}
	if err := json.Unmarshal([]byte(description), f); err != nil {
		return err
	}
	if f.Exits {
		os.Exit(3)
	}
	if f.ExitsOnce != "" {
		if file, err := os.OpenFile(f.ExitsOnce, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			file.Close()
			os.Exit(3)
		}
	}
	value := func(flag string) string { return args[slices.Index(args, flag)+1] }
	dir := filepath.Dir(value("-c"))
	os.Remove(filepath.Join(dir, "admin.sock")) // of one that was killed
	admin, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
	if err != nil {
		return err
	}
	go http.Serve(admin, http.HandlerFunc(f.admin))
	hot := slices.Contains(args, "--base-id")
	if hot {
		base, err := strconv.ParseUint(value("--base-id"), 10, 64)
		if err != nil {
			return err
		}
		f.where, f.id = value("--socket-path"), 10*base
		if err := f.playParent(); err != nil {
			return err
		}
	}
	if err := f.takeResources(filepath.Join(dir, "xds.sock")); err != nil {
		return err
	}
	if err := f.serve(hot); err != nil {
		return err
	}
	f.live.Store(!f.Unready)
	select {} // until a signal
}

func (f *fakeEnvoy) admin(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/ready" && !f.live.Load():
		http.Error(w, "INITIALIZING", http.StatusServiceUnavailable)
	case r.URL.Path == "/server_info":
		fmt.Fprint(w, `{"version":"0/9.9.9/x/y/z"}`)
	case r.URL.Path == "/name":
		fmt.Fprint(w, f.Name)
	case r.URL.Path == "/carried":
		if err := f.askCounters(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, f.carried)
	case r.URL.Path == "/stats/prometheus":
		fmt.Fprintf(w, "envoy_of_%s 1\n", f.Name)
	case r.URL.Path == "/stats":
		fmt.Fprint(w, liveStats)
		if f.Asked != "" && r.URL.Query().Get("type") == "Counters" {
			fmt.Fprintf(w, "%s: %d\n", askedName, f.countAsked())
		}
		if f.LongStats && r.URL.Query().Get("type") == "Counters" {
			fmt.Fprintf(w, "%s: 1\n", strings.Repeat("n", longName))
		}
		if f.Counts != "" && r.URL.Query().Get("type") == "Counters" {
			asked := f.asked.Add(1)
			_ = os.WriteFile(f.Counts, strconv.AppendUint(nil, asked, 10), 0o600)
			fmt.Fprintf(w, "%s: %d\n", fakeCounter, asked)
		}
	}
}

// takeResources acknowledges whatever it gets but what it refuses, and returns after the first listeners.
func (f *fakeEnvoy) takeResources(path string) error {
	const cds, lds = "type.googleapis.com/envoy.config.cluster.v3.Cluster", "type.googleapis.com/envoy.config.listener.v3.Listener"
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background())
	if err != nil {
		return err
	}
	for _, url := range []string{cds, lds} {
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url}); err != nil {
			return err
		}
	}
	first := make(chan error, 1)
	go func() {
		for {
			resp, err := stream.Recv()
			if err == nil {
				err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce, ErrorDetail: f.verdict(resp)})
			}
			if err != nil || resp.TypeUrl == lds {
				select {
				case first <- err:
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return <-first
}

// verdict is nil for a response that Envoy takes. A resource against a rule has it refused whole,
// and the message does not say which.
func (f *fakeEnvoy) verdict(resp *discoveryv3.DeltaDiscoveryResponse) *status.Status {
	for _, r := range resp.Resources {
		if r.Name == f.Refuses {
			return &status.Status{Message: "Proto constraint validation failed"}
		}
	}
	return nil
}

// serve listens, on what the generation before has where there is one.
func (f *fakeEnvoy) serve(hot bool) error {
	fd := -1
	var child *net.UnixConn
	if hot {
		var err error
		if child, err = bindHotRestart(f.socket("child", 1)); err != nil {
			return err
		}
		body := protowire.AppendTag(nil, 1, protowire.BytesType)
		body = protowire.AppendString(body, "tcp://"+f.Listen)
		if err := sendHotRestart(child, f.socket("parent", 0), requestOf(1, body), -1); err != nil {
			return err
		}
		if _, fd, err = receiveHotRestart(child); err != nil {
			return err
		}
	}
	l, err := f.listen(fd)
	if err != nil {
		return err
	}
	f.listener.Store(l.(*net.TCPListener))
	go f.answer()
	if !hot {
		return nil
	}
	f.child.Store(child)
	accepts := func() error { return sendHotRestart(child, f.socket("parent", 0), requestOf(4, nil), -1) }
	if !f.Slow {
		return accepts()
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		<-asked
		accepts()
	}()
	return nil
}

func (f *fakeEnvoy) listen(fd int) (net.Listener, error) {
	if fd >= 0 {
		file := os.NewFile(uintptr(fd), "listener")
		defer file.Close()
		return net.FileListener(file)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(err, controlErr)
	}}
	config.SetMultipathTCP(false) // Envoy's are none, and the kernel takes no reuseport program for those
	return config.Listen(context.Background(), "tcp", f.Listen)
}

// answer says its name, and keeps each connection until its client closes it.
func (f *fakeEnvoy) answer() {
	for {
		c, err := f.listener.Load().Accept()
		if err != nil {
			return
		}
		f.connections.Add(1)
		go func() {
			defer f.connections.Add(-1)
			defer c.Close()
			fmt.Fprintln(c, f.Name)
			c.Read(make([]byte, 1))
		}()
	}
}

// countAsked counts this question in the file.
func (f *fakeEnvoy) countAsked() int {
	data, _ := os.ReadFile(f.Asked)
	n, _ := strconv.Atoi(string(data))
	os.WriteFile(f.Asked, []byte(strconv.Itoa(n+1)), 0o600)
	return n + 1
}

// askCounters asks the agent, as the Envoy before this one, by how much its counter has grown.
func (f *fakeEnvoy) askCounters() error {
	f.asking.Lock()
	defer f.asking.Unlock()
	child := f.child.Load()
	child.SetDeadline(time.Now().Add(5 * time.Second))
	if err := sendHotRestart(child, f.socket("parent", 0), requestOf(3, nil), -1); err != nil {
		return err
	}
	message, _, err := receiveHotRestart(child)
	if err != nil {
		return err
	}
	for range 2 { // the reply, and of it the statistics
		_, _, n := protowire.ConsumeTag(message)
		message, _ = protowire.ConsumeBytes(message[n:])
	}
	stats, err := hotenvoy.ParseStatsReply(message)
	f.carried += stats.CounterDeltas[askedName]
	return err
}

// playParent answers the agent, which is the Envoy after this one.
func (f *fakeEnvoy) playParent() error {
	conn, err := bindHotRestart(f.socket("parent", 1))
	if err != nil {
		return err
	}
	go func() {
		for {
			message, _, err := receiveHotRestart(conn)
			if err != nil {
				os.Exit(4)
			}
			kind, worker := readRequest(message)
			fd, reply := -1, []byte(nil)
			switch kind {
			case 1:
				answer := int64(-1)
				if worker == 0 {
					if fd = f.copy(); fd >= 0 {
						answer = 1
					}
				}
				reply = protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(answer))
			case 3:
				reply = protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), uint64(f.connections.Load()))
				if f.LongStats {
					reply = protowire.AppendBytes(protowire.AppendTag(reply, 5, protowire.BytesType), make([]byte, 16<<20-longName))
				}
			case 4:
				f.listener.Load().Close()
				continue
			case 5:
				os.Exit(0)
			}
			if err := sendHotRestart(conn, f.socket("child", 2), envelope(2, kind, reply), fd); err != nil {
				os.Exit(5)
			}
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}()
	return nil
}

// copy duplicates the listening socket, which stays a non-blocking one; -1 when there is none.
func (f *fakeEnvoy) copy() int {
	fd := -1
	l := f.listener.Load()
	if l == nil {
		return fd
	}
	if raw, err := l.SyscallConn(); err == nil {
		raw.Control(func(original uintptr) { fd, _ = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0) })
	}
	return fd
}

func (f *fakeEnvoy) socket(role string, epoch uint64) string {
	return fmt.Sprintf("%s_%s_%d", f.where, role, f.id+epoch)
}

func bindHotRestart(path string) (*net.UnixConn, error) {
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
}

func requestOf(kind protowire.Number, body []byte) []byte { return envelope(1, kind, body) }

// envelope is a HotRestartMessage with a Request (1) or a Reply (2) of that kind.
func envelope(part, kind protowire.Number, body []byte) []byte {
	inner := protowire.AppendBytes(protowire.AppendTag(nil, kind, protowire.BytesType), body)
	return protowire.AppendBytes(protowire.AppendTag(nil, part, protowire.BytesType), inner)
}

// readRequest returns the kind of a request, and worker_index.
func readRequest(message []byte) (kind protowire.Number, worker uint64) {
	_, _, n := protowire.ConsumeTag(message)
	inner, _ := protowire.ConsumeBytes(message[n:])
	kind, _, n = protowire.ConsumeTag(inner)
	body, _ := protowire.ConsumeBytes(inner[n:])
	for len(body) > 0 {
		number, wire, n := protowire.ConsumeTag(body)
		if n < 0 {
			break
		}
		size := protowire.ConsumeFieldValue(number, wire, body[n:])
		if size < 0 {
			break
		}
		if number == 2 {
			worker, _ = protowire.ConsumeVarint(body[n:])
		}
		body = body[n+size:]
	}
	return kind, worker
}

func sendHotRestart(conn *net.UnixConn, to string, message []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	frame := append(binary.BigEndian.AppendUint64(nil, uint64(len(message))), message...)
	for part := range slices.Chunk(frame, 4096) { // as Envoy does
		if _, _, err := conn.WriteMsgUnix(part, rights, &net.UnixAddr{Name: to, Net: "unixgram"}); err != nil {
			return err
		}
		rights = nil
	}
	return nil
}

func receiveHotRestart(conn *net.UnixConn) (message []byte, fd int, err error) {
	buffer, oob := make([]byte, 8192), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buffer, oob)
	if err != nil || n < 8 {
		return nil, -1, errors.Join(err, errors.New("no message"))
	}
	fd = -1
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) > 0 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil {
			fd = fds[0]
		}
	}
	return buffer[8:n], fd, nil
}

// nameAt connects to an Envoy, and returns its name with the connection; "" when nobody answers.
func nameAt(address string) (string, net.Conn) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", nil
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	buffer := make([]byte, 64)
	n, _ := c.Read(buffer)
	return strings.TrimSpace(string(buffer[:n])), c
}
