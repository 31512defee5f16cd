package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/security/sds"
)

const (
	// externalDir is where another server of the pod, such as SPIRE's agent, has the socket at which Envoy gets the
	// workload's certificate, relative to the working directory as in Istio.
	externalDir = "./var/run/secrets/workload-spiffe-uds"
	// istioSocket is the name that Istio's own agent gives its socket there.
	istioSocket = "socket"
)

// External is the socket of another server that has the workload's certificate; "" is none, and the agent obtains it itself.
// It fails where the settings name a socket that nobody serves.
func External(c *config.Config, log *slog.Logger) (path string, err error) {
	path = filepath.Join(externalDir, c.IdentitySocketFile) // config has seen to it that it is a name, not a path
	info, err := os.Lstat(path)                             // a link is to an agent's own (rundir)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		err = errors.New("no socket")
	case err == nil:
		err = sds.Check(path)
	}
	switch {
	case err == nil:
		log.Info("another server of this pod has the workload's certificate", "socket", path)
		return filepath.Abs(path)
	case c.IdentitySocketFile != istioSocket:
		return "", fmt.Errorf("%s: nobody serves certificates at %s: %w", c.Spelled("workloadIdentitySocketFile"), path, err)
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("nobody serves certificates at a socket that is there; the agent obtains one itself", "socket", path, "err", err)
	}
	return "", nil
}
