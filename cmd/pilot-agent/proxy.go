package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/agent"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/logging"
)

const (
	// maxSettingsFile bounds the mesh file and the downward API's files; the API
	// server keeps a pod's annotations, and a ConfigMap, under 1 MiB.
	maxSettingsFile = 2 << 20
	// The garbage collector's percentages: fast while the agent starts, as the pod waits for
	// it, and then small, as its memory is multiplied by the number of pods. $GOGC overrides
	// both.
	startGCPercent   = 100
	settledGCPercent = 50
)

func newProxyCommand(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "proxy [sidecar|router]",
		Short: "Run the agent and its Envoy",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			role := config.Sidecar
			if len(args) == 1 {
				var err error
				if role, err = config.ParseRole(args[0]); err != nil {
					return &cli.UsageError{Err: err}
				}
			}
			return proxy(e, cmd, role)
		},
	}
	cli.AddSettings(cmd.Flags(), false)
	cli.CompleteFlag(cmd, "takeover", string(config.TakeoverAuto), string(config.TakeoverForce))
	return cmd
}

// proxy loads the configuration and runs one agent until the command's context ends.
func proxy(e *cli.Env, cmd *cobra.Command, role config.Role) error {
	started := time.Now()
	settled := debug.FreeOSMemory
	if !slices.ContainsFunc(e.Environ, func(kv string) bool { return strings.HasPrefix(kv, "GOGC=") }) {
		debug.SetGCPercent(startGCPercent)
		settled = func() {
			debug.SetGCPercent(settledGCPercent)
			debug.FreeOSMemory()
		}
	}
	cfg, warnings, err := config.Load(config.Sources{
		Role: role, Version: currentBuild().Version,
		Flags: cli.GivenSettings(cmd), Environ: e.Environ, NodeIPs: interfaceAddrs(),
		ReadFile: readSettingsFile, IsDir: isDir,
	})
	if err != nil {
		return err
	}
	out, err := openLog(e, cfg.LogTarget)
	if err != nil {
		return err
	}
	defer out.Close()
	log := logging.New(out, logging.Options{JSON: cfg.LogJSON, Levels: cfg.LogLevels})
	announce(logging.For(log, "agent"), cfg, warnings)
	if cfg.ConfigDir == "" {
		return fmt.Errorf("istiod at %s: this release runs on files only: give --configDir (or UNDERSTUDY_CONFIG_DIR) a directory with ServiceEntry YAML", cfg.DiscoveryAddress)
	}
	a, err := agent.New(cfg, agent.World{
		Version: currentBuild().Version, Environ: e.Environ,
		Stdout: asFile(e.Stdout), Stderr: asFile(e.Stderr),
		FileLimit: fileLimit(), Init: os.Getpid() == 1, Started: started, Boot: bootTime(), Settled: settled,
		Log: func(scope string) *slog.Logger { return logging.For(log, scope) },
	})
	if err != nil {
		return err
	}
	err = a.Run(cmd.Context())
	var exit *envoy.ExitError
	if errors.As(err, &exit) {
		return &cli.StatusError{Status: exit.Status, Err: err}
	}
	return err
}

// announce writes the first lines of the log: version, mode, every setting that is not at
// its default, and the warnings about the sources.
func announce(log *slog.Logger, cfg *config.Config, warnings []config.Warning) {
	mode := "istiod at " + cfg.DiscoveryAddress
	if cfg.ConfigDir != "" {
		mode = "files in " + cfg.ConfigDir
	}
	log.Info("starting", "version", currentBuild().Version, "role", string(cfg.Role), "mode", mode)
	for _, v := range cfg.Effective() {
		level := slog.LevelInfo
		if v.Source == "default" {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "setting", "name", v.Name, "value", v.Value, "source", v.Source)
	}
	for _, w := range warnings {
		log.Warn(w.String())
	}
}

// interfaceAddrs returns the addresses of the interfaces that are up, without
// loopback and link-local ones; none where they cannot be listed.
func interfaceAddrs() []netip.Addr {
	var addrs []netip.Addr
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		list, _ := i.Addrs()
		for _, a := range list {
			prefix, err := netip.ParsePrefix(a.String())
			if addr := prefix.Addr().Unmap(); err == nil && !addr.IsLinkLocalUnicast() && !addr.IsLoopback() {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// readSettingsFile reads a file of a bounded size.
func readSettingsFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSettingsFile+1))
	if err == nil && len(data) > maxSettingsFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSettingsFile)
	}
	return data, err
}

// fileLimit is how many files Envoy may have open, 0 for no limit. That is the hard limit:
// Go has raised the agent's soft limit to it, and Envoy raises its own.
func fileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur == unix.RLIM_INFINITY {
		return 0
	}
	return limit.Cur
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// asFile returns w where it is a file that a child process can inherit.
func asFile(w io.Writer) *os.File {
	f, _ := w.(*os.File)
	return f
}
