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
	// credentialSocket is where another server has the certificates that a configuration names as sds://NAME; istiod makes the
	// cluster of it, which asks there (Istio's CredentialNameSocketPath).
	credentialSocket = "./var/run/secrets/credential-uds/socket"
)

// Others are the servers of certificates that the pod has besides the agent. The zero value: there are none.
type Others struct {
	// Workload is the socket of the one that has the workload's certificate; "": the agent obtains it itself.
	Workload string
	// Credentials says that one serves certificates by name, which istiod has to know.
	Credentials bool
}

// FindOthers looks for them. It fails where the settings name a socket that nobody serves.
func FindOthers(c *config.Config, log *slog.Logger) (o Others, err error) {
	path := filepath.Join(externalDir, c.IdentitySocketFile) // config has seen to it that it is a name, not a path
	switch err = served(path); {
	case err == nil:
		log.Info("another server of this pod has the workload's certificate", "socket", path)
		if o.Workload, err = filepath.Abs(path); err != nil {
			return Others{}, err
		}
	case c.IdentitySocketFile != istioSocket:
		return Others{}, fmt.Errorf("%s: nobody serves certificates at %s: %w", c.Spelled("workloadIdentitySocketFile"), path, err)
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("nobody serves certificates at a socket that is there; the agent obtains one itself", "socket", path, "err", err)
	}
	switch err = served(credentialSocket); {
	case err == nil:
		log.Info("another server of this pod has certificates by name", "socket", credentialSocket)
		o.Credentials = true
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("nobody serves certificates at a socket that is there; istiod is not told of it", "socket", credentialSocket, "err", err)
	}
	return o, nil
}

// served says why nobody serves secrets at a path.
func served(path string) error {
	info, err := os.Lstat(path) // a link is to an agent's own (rundir)
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("no socket")
	}
	return sds.Check(path)
}
