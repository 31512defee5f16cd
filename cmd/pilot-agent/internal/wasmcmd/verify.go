package wasmcmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/wasm"
)

const verifyHelp = `Says whether an Envoy would take a module, and if not why: it reads the frame of the file, and has an Envoy compile
it, start it and hand it its configuration, as it would be in a pod. Neither needs a running agent, nor does it disturb one.
FILE is the module itself, unpacked. The Envoy is the agent's: binaryPath. Exit status 0 if nothing has failed, else 1.`

// errVerify ends a check that has found something: exit status 1.
var errVerify = errors.New("an Envoy does not take this module")

// maxPluginConfig bounds the file with a plugin's configuration: what the API server takes of a resource.
const maxPluginConfig = 1 << 20

// States of a finding.
const (
	stateOK      = "ok"
	stateFailed  = "failed"
	stateSkipped = "skipped"
)

// finding is the outcome of one check, as JSON.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"`
	Detail string `json:"detail"`
}

// verifyReport is the result as JSON.
type verifyReport struct {
	Right    bool      `json:"right"`
	SHA256   string    `json:"sha256"`
	Size     int64     `json:"size"`
	Findings []finding `json:"findings"`
}

// helpers makes what runs an Envoy for a moment, and a directory for it, which the caller removes.
type helpers func() (*envoy.Helper, string, error)

// pluginOptions are the flags that say with which configuration a module is tried.
type pluginOptions struct {
	pluginConfig string
	rootID       string
	network      bool
}

func (o *pluginOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.pluginConfig, "plugin-config", "", "file whose text the module is given as its configuration, byte for byte")
	cmd.Flags().StringVar(&o.rootID, "root-id", "", "root id of the plugin")
	cmd.Flags().BoolVar(&o.network, "network", false, "try it as a network filter, not as one of HTTP")
}

type verifyOptions struct {
	pluginOptions
	output cli.Output
}

func newVerifyCommand(e *cli.Env, load Load) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Say whether an Envoy would take a module, and if not why",
		Long:  verifyHelp,
		Args:  cobra.ExactArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.output.Check(); err != nil {
			return err
		}
		cfg, _, err := load(e, cmd, config.Sidecar)
		if err != nil {
			return err
		}
		plugin, err := o.plugin()
		if err != nil {
			return err
		}
		report, err := verify(cmd.Context(), args[0], plugin, func() (*envoy.Helper, string, error) { return newHelper(e, cfg) })
		if err != nil {
			return err
		}
		return report.write(e.Stdout, o.output.IsJSON())
	}
	cli.AddSettings(cmd.Flags(), false)
	o.output.AddFlag(cmd, "o")
	o.pluginOptions.addFlags(cmd)
	return cmd
}

// plugin is the configuration that the module is tried with.
func (o pluginOptions) plugin() (wasm.Plugin, error) {
	var text []byte
	if o.pluginConfig != "" {
		var err error
		if text, err = readFile(o.pluginConfig, maxPluginConfig); err != nil {
			return wasm.Plugin{}, fmt.Errorf("flag --plugin-config: %w", err)
		}
	}
	type message = map[string]any
	config, err := json.Marshal(message{
		"name": "plugin", "rootId": o.rootID,
		"configuration": message{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": string(text)},
	})
	return wasm.Plugin{Config: config, Network: o.network}, err
}

// readFile reads a file of at most so many bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, err
}

// verify looks at the frame of a module, and if that is right has an Envoy try it. The error is of the file, not of the module.
func verify(ctx context.Context, path string, plugin wasm.Plugin, start helpers) (verifyReport, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return verifyReport{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return verifyReport{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return verifyReport{}, err
	}
	if !info.Mode().IsRegular() {
		return verifyReport{}, fmt.Errorf("%s is no regular file", path)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return verifyReport{}, err
	}
	r := verifyReport{Right: true, SHA256: hex.EncodeToString(hash.Sum(nil)), Size: info.Size()}
	module, err := wasm.Check(f, info.Size())
	if err != nil {
		r.add("structure", stateFailed, err.Error())
		return r, nil
	}
	r.add("structure", stateOK, fmt.Sprintf("proxy-wasm ABI %s, functions of the host: %d, bytes: %d", module.ABI, module.Imports, info.Size()))
	r.try(ctx, start, wasm.Trial{Path: path, Size: info.Size(), Plugin: plugin})
	return r, nil
}

// try has an Envoy try the module.
func (r *verifyReport) try(ctx context.Context, start helpers, trial wasm.Trial) {
	helper, dir, err := start()
	if err != nil {
		r.add("envoy", stateFailed, err.Error())
		return
	}
	defer os.RemoveAll(dir)
	version := ""
	skipped, err := trial.Run(ctx, helper)
	if err == nil {
		version, err = helper.Version(ctx)
	}
	switch {
	case err != nil:
		r.add("envoy", stateFailed, err.Error())
	case skipped != "":
		r.add("envoy", stateSkipped, skipped)
	default:
		r.add("envoy", stateOK, "it starts in Envoy "+version)
	}
}

func (r *verifyReport) add(check, state, detail string) {
	r.Findings = append(r.Findings, finding{check, state, detail})
	r.Right = r.Right && state != stateFailed
}

func (r verifyReport) write(w io.Writer, asJSON bool) error {
	if asJSON {
		if err := cli.PrintJSON(w, r); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "sha256: %s\n", r.SHA256)
		rows := cli.NewTable(w, "CHECK", "STATE", "DETAIL")
		for _, f := range r.Findings {
			rows.Add(f.Check, f.State, f.Detail)
		}
		if err := rows.End(); err != nil {
			return err
		}
	}
	if !r.Right {
		return errVerify
	}
	return nil
}
