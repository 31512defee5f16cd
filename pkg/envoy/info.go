package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// infoTimeout bounds the start of an Envoy without any configuration, which takes half a second.
	infoTimeout = 10 * time.Second
	// infoPeriod is the time between two looks whether it answers.
	infoPeriod = 50 * time.Millisecond
)

// ServerInfo starts an Envoy of this binary without any configuration, and returns what its admin API says at /server_info, in
// JSON. It listens on nothing but a Unix socket in a directory of its own below dir, and has ended when ServerInfo returns.
func ServerInfo(ctx context.Context, binary, dir string) (info []byte, err error) {
	dir, err = os.MkdirTemp(dir, "envoy-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	socket := filepath.Join(dir, "admin.sock")
	cmd := exec.CommandContext(ctx, binary, "--config-yaml", fmt.Sprintf(`{"admin":{"address":{"pipe":{"path":%q,"mode":384}}}}`, socket),
		"--disable-hot-restart", "--concurrency", "1", "--log-level", "off")
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	defer func() { cancel(); _ = cmd.Wait() }() // it is killed
	admin := NewAdmin(socket)
	defer admin.Close()
	tick := time.NewTicker(infoPeriod)
	defer tick.Stop()
	for {
		err := admin.do(ctx, http.MethodGet, "/server_info", func(body io.Reader) (err error) {
			info, err = io.ReadAll(body)
			return err
		})
		if err == nil {
			return info, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("an Envoy of %s does not answer: %w", binary, err)
		}
	}
}
