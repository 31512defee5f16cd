package e2e_test

import (
	"context"
	"io"
	"net"
	"testing"

	"understudy.mesh/tests/lab"
)

const (
	// fewFiles is what many distributions give a process; crowd is how many connections an
	// Envoy with so few cannot have.
	fewFiles = 1024
	crowd    = 900
	// fewConnections is what is left of the files for connections.
	fewConnections = (fewFiles - 256) / 2
)

// TestFewFiles: what has no room is refused, and Envoy goes on.
func TestFewFiles(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": aliyun},
		agent: lab.AgentOptions{Files: fewFiles},
	})
	lab.ServeTCP(p.Pod.Listen(t, "[::]:9000"), lab.Echo)
	pid := p.agent.EnvoyPID()
	var open []net.Conn
	ctx, cancel := context.WithTimeout(t.Context(), lab.Deadline)
	defer cancel()
	for range crowd {
		if c, err := p.Out.Dial(ctx, "tcp", lab.PodIP+":9000"); err == nil {
			open = append(open, c)
		}
	}
	served := 0
	deadline, _ := ctx.Deadline()
	for _, c := range open {
		_ = c.SetDeadline(deadline)
		_, _ = io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
			served++
		}
	}
	if served < fewConnections/2 || served > fewConnections {
		t.Errorf("%d of %d connections are served, want nearly %d", served, crowd, fewConnections)
	}
	if now := p.agent.EnvoyPID(); now != pid {
		t.Errorf("Envoy %d has ended; %d runs", pid, now)
	}
	if err := contains(p.agent.Log.String(), "bounds Envoy's connections"); err != nil {
		t.Error(err)
	}
	for _, c := range open {
		c.Close()
	}
	eventually(t, "there is room again", func() error {
		c, err := p.Out.Dial(ctx, "tcp", lab.PodIP+":9000")
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(deadline)
		_, _ = io.WriteString(c, "x")
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	})
}
