// Package realenvoy runs a real Envoy for a test, and reads its statistics. It has nothing of pkg/envoy, so that the
// packages below that one can use it.
package realenvoy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is a deadline for what ought to take less than a second.
const patience = 60 * time.Second

// Process is one running Envoy.
type Process struct {
	cmd   *exec.Cmd
	done  chan struct{}
	err   error // how it ended, written before done is closed
	admin http.Client
}

// Start runs program, whose admin API is to be on the Unix socket at admin, and which writes to output. It is killed at the
// end of the test, if it runs then.
func Start(t testing.TB, admin string, output *os.File, program string, args ...string) *Process {
	t.Helper()
	p := &Process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.admin.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", admin)
	}}
	started := make(chan error)
	go func() {
		// Envoy asks the kernel to be ended with the thread that forked it (PR_SET_PDEATHSIG), so that one has to live as long.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.admin.CloseIdleConnections()
	})
	return p
}

// Done is closed once the process was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, nil for exit status 0. It is valid after Done.
func (p *Process) Err() error { return p.err }

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the process, whatever it does, and waits for that. Killing twice does no harm.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended, which Done says
	<-p.done
}

// Stop ends the process as its agent does, and kills one that does not end.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Kill()
	}
}

// Ready says whether the process serves: it has had its first configuration, and its workers run.
func (p *Process) Ready(ctx context.Context) bool {
	const live, workers = "server.live", "listener_manager.workers_started"
	stats, err := p.Stats(ctx, `^(server\.live|listener_manager\.workers_started)$`)
	return err == nil && stats[live] == 1 && stats[workers] == 1
}

// Stats are the counters and gauges whose names match filter (RE2), and that were written to.
func (p *Process) Stats(ctx context.Context, filter string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/stats?usedonly&filter="+url.QueryEscape(filter), nil)
	if err != nil {
		return nil, err
	}
	response, err := p.admin.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the statistics of Envoy: %s", response.Status)
	}
	stats := map[string]uint64{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			stats[name] = n
		}
	}
	return stats, lines.Err()
}

// Path is where the Envoy is that tests run: ENVOY_BINARY, else bin/envoy below root, the repository. Without one
// the test is skipped, and fails where nothing may be skipped.
func Path(t testing.TB, root string) string {
	t.Helper()
	path := os.Getenv("ENVOY_BINARY")
	if path == "" {
		path, _ = filepath.Abs(filepath.Join(root, "bin/envoy"))
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no Envoy: %v (make envoy, or set ENVOY_BINARY)", err)
		}
		t.Skipf("no Envoy: %v (make envoy, or set ENVOY_BINARY)", err)
	}
	return path
}
