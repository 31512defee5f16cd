package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/agent"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/istiod"
	"understudy.mesh/pkg/logging"
)

const istiodHelp = `Tries, as this pod, what its agent needs of istiod, and says what fails and what helps: whether the address
resolves, the roots are valid, TLS succeeds, the token is for istiod and has not expired, the clock of the node
is not slow, istiod answers this pod and with how much, Envoy has the extensions that this takes, and the
certificate authority signs what nobody keeps. Exit status 0 if nothing has failed, else 1.
It takes the flags and the environment of "pilot-agent proxy", and neither needs a running agent nor disturbs
one: a container with the pod's environment and volumes can run it, in a Job for one. Without an agent it
starts an Envoy for a moment, to ask which extensions it has.`

// errIstiod ends a check that has found something: exit status 1.
var errIstiod = errors.New("istiod does not serve this pod as it should")

// sharedMemory can be written to in every container, whatever else is read-only.
const sharedMemory = "/dev/shm"

// maxServerInfo bounds what is read of Envoy's answer: a stock Envoy's has 200 KiB.
const maxServerInfo = 4 << 20

// Load reads the settings that a proxy would have which is started as cmd is.
type Load func(e *cli.Env, cmd *cobra.Command, role config.Role) (*config.Config, []config.Warning, error)

// istiodReport is the result of doctor istiod as JSON.
type istiodReport struct {
	Right    bool             `json:"right"`
	Findings []istiod.Finding `json:"findings"`
}

func newIstiodCommand(e *cli.Env, load Load) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use:   "istiod",
		Short: "Try what this pod's agent needs of istiod",
		Long:  istiodHelp,
		Args:  cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := output.Check(); err != nil {
			return err
		}
		log, err := e.Log(cmd)
		if err != nil {
			return err
		}
		cfg, _, err := load(e, cmd, config.Sidecar)
		if err != nil {
			return err
		}
		if cfg.ConfigDir != "" {
			return &cli.UsageError{Err: fmt.Errorf("%s: with it the agent has its configuration from files, and needs no istiod", cfg.Spelled("configDir"))}
		}
		info := serverInfo(cmd.Context(), e.Client().Send, cfg)
		findings, err := agent.CheckIstiod(cmd.Context(), cfg, info, logging.For(log, "istiod"))
		if err != nil {
			return err
		}
		return newIstiodReport(findings).write(e.Stdout, output.IsJSON())
	}
	cli.AddSettings(cmd.Flags(), false)
	output.AddFlag(cmd, "o")
	return cmd
}

// serverInfo asks the Envoy of the running agent, and where there is none one of the agent's binary.
func serverInfo(ctx context.Context, send func(context.Context, control.Request) (*http.Response, error), cfg *config.Config) agent.EnvoyInfo {
	resp, err := send(ctx, control.Request{Port: contract.AdminPort, Method: http.MethodGet, Path: "/server_info"})
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			info, err := io.ReadAll(io.LimitReader(resp.Body, maxServerInfo))
			return agent.EnvoyInfo{JSON: info, Unknown: err}
		}
	}
	info, err := envoy.ServerInfo(ctx, cfg.BinaryPath, cfg.ConfigPath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) { // a Job has no need of that volume
		info, err = envoy.ServerInfo(ctx, cfg.BinaryPath, sharedMemory)
	}
	return agent.EnvoyInfo{JSON: info, Unknown: err}
}

func newIstiodReport(findings []istiod.Finding) istiodReport {
	r := istiodReport{Right: true, Findings: findings}
	for _, f := range findings {
		r.Right = r.Right && f.State != istiod.StateFailed
	}
	return r
}

func (r istiodReport) write(w io.Writer, asJSON bool) error {
	if asJSON {
		if err := cli.PrintJSON(w, r); err != nil {
			return err
		}
	} else {
		rows := cli.NewTable(w, "CHECK", "STATE", "DETAIL")
		for _, f := range r.Findings {
			rows.Add(f.Check, string(f.State), f.Detail)
		}
		if err := rows.End(); err != nil {
			return err
		}
	}
	failed := 0
	for _, f := range r.Findings {
		if f.State == istiod.StateFailed {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%w; checks that failed: %d", errIstiod, failed)
	}
	return nil
}
