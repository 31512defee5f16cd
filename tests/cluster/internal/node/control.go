package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"understudy.mesh/tests/cluster/internal/registry"
)

// serveRegistry makes the images of the state the mirror of every registry.
func serveRegistry() error {
	l, err := net.Listen("tcp", Address+":5000")
	if err != nil {
		return fmt.Errorf("serve the images: %w", err)
	}
	go func() {
		slog.Error("the registry ended", "reason", http.Serve(l, registry.Open(filepath.Join(stateMount, Registry))))
	}()
	return nil
}

// serveControl lets those outside stop and start components, over a socket in the node's /run.
func (s *supervisor) serveControl() error {
	l, err := net.Listen("unix", controlAt)
	if err != nil {
		return fmt.Errorf("serve the node's control: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /components/{name}/stop", func(w http.ResponseWriter, r *http.Request) {
		signal, err := strconv.Atoi(r.FormValue("signal"))
		if err == nil {
			err = s.stop(r.Context(), Component(r.PathValue("name")), syscall.Signal(signal))
		}
		answer(w, err)
	})
	mux.HandleFunc("POST /components/{name}/start", func(w http.ResponseWriter, r *http.Request) {
		p, err := s.program(Component(r.PathValue("name")))
		if err == nil {
			err = s.start(p)
		}
		if err == nil {
			err = s.waitReady(r.Context(), p)
		}
		answer(w, err)
	})
	go func() { slog.Error("the node's control ended", "reason", http.Serve(l, mux)) }()
	return nil
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// Control is how those outside ask a node.
type Control struct {
	client *http.Client
}

// Dial returns the control of the node that has this process ID on the machine.
func Dial(pid int) Control {
	socket := fmt.Sprintf("/proc/%d/root%s", pid, controlAt)
	return Control{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Stop ends a component with a signal, and returns when it has ended. It stays down until Start.
func (c Control) Stop(ctx context.Context, name Component, signal syscall.Signal) error {
	return c.post(ctx, fmt.Sprintf("/components/%s/stop?signal=%d", name, signal))
}

// Start starts a component that does not run, and returns when it serves.
func (c Control) Start(ctx context.Context, name Component) error {
	return c.post(ctx, fmt.Sprintf("/components/%s/start", name))
}

func (c Control) post(ctx context.Context, path string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://node"+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the node: %w", err)
	}
	response, err := c.client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the node: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("ask the node: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the node: %s", strings.TrimSpace(string(text)))
	}
	return nil
}

// ReadSteps yields what a node says while it starts, until it is ready; the error is what failed, or that the node ended
// without a word.
func ReadSteps(progress io.Reader, done func(string)) error {
	decoder := json.NewDecoder(progress)
	for {
		var step Step
		if err := decoder.Decode(&step); err != nil {
			return fmt.Errorf("the node ended while it started (%w)", err)
		}
		switch {
		case step.Failed != "":
			return fmt.Errorf("start the node: %s", bytes.TrimSpace([]byte(step.Failed)))
		case step.Ready:
			return nil
		default:
			done(step.Done)
		}
	}
}
