// Package wasmcmd owns `pilot-agent wasm`: trying modules of Wasm filters, and looking after the store in which a pod keeps them.
package wasmcmd

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
)

// Load reads the settings that a proxy would have which is started as cmd is.
type Load func(e *cli.Env, cmd *cobra.Command, role config.Role) (*config.Config, []config.Warning, error)

// New returns the command.
func New(e *cli.Env, load Load) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wasm",
		Short: "See which modules Wasm filters run, fetch and try them, and look after the store that has them",
	}
	cmd.AddCommand(newPullCommand(e, load), newVerifyCommand(e, load), newExplainCommand(e, load), newCacheCommand(e), newListCommand(e), newReloadCommand(e))
	return cmd
}

// newHelper is helpers for the agent's Envoy.
func newHelper(e *cli.Env, cfg *config.Config) (*envoy.Helper, string, error) {
	var err error
	for _, parent := range []string{os.TempDir(), cfg.ConfigPath} { // a container may have no /tmp that can be written to
		var dir string
		if dir, err = os.MkdirTemp(parent, "wasm-"); err == nil {
			dir, err = filepath.Abs(dir)
			return envoy.NewHelper(envoy.HelperConfig{Binary: cfg.BinaryPath, Dir: dir, Environ: e.Environ}), dir, err
		}
	}
	return nil, "", err
}
