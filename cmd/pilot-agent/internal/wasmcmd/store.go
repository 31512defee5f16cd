package wasmcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/logging"
	"understudy.mesh/pkg/mesh/wasmplugin"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/settings"
)

const pullHelp = `Fetches a module as the agent does, has an Envoy try it, and puts it into the pod's store, where the agent finds it.
REF is the name of an image, or a URL: oci://, http://, https://, file://. A tag is asked for again, whatever the store has.
With --filename it is the module of each WasmPlugin in that file, which is tried with the plugin's own configuration.
It takes the environment of "pilot-agent proxy", for certificates, mirrors and pull secrets.`

const cacheHelp = `Lists the modules in the pod's store, the longest unused first. With --prune it takes away before that what nobody uses,
but for what was fetched or used within the last ten minutes.`

// maxSecretFile bounds a file with credentials: what the API server takes of a Secret.
const maxSecretFile = 1 << 20

// maxPluginFile bounds a file with WasmPlugins: what a ConfigMap takes of one.
const maxPluginFile = 1 << 20

type pullOptions struct {
	pluginOptions
	output              cli.Output
	dir, secret, sha256 string
	filename            string
	wait                time.Duration
}

func newPullCommand(e *cli.Env, load Load) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:   "pull [REF]",
		Short: "Fetch a module into the pod's store, and say what is wrong if that fails",
		Long:  pullHelp,
		Args:  cobra.MaximumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.output.Check(); err != nil {
			return err
		}
		cfg, _, err := load(e, cmd, config.Sidecar)
		if err != nil {
			return err
		}
		wanted, err := o.wanted(args, cfg.PodNamespace)
		if err != nil {
			return err
		}
		return o.pull(e, cmd, cfg, wanted)
	}
	cli.AddSettings(cmd.Flags(), false)
	o.output.AddFlag(cmd, "o")
	o.pluginOptions.addFlags(cmd)
	addDirFlag(cmd, &o.dir)
	cmd.Flags().StringVar(&o.secret, "secret", "", "pull secret: the name of one that is mounted, or a file with a dockerconfigjson (with a / in its name)")
	cmd.Flags().StringVar(&o.sha256, "sha256", "", "what is wanted: SHA-256 of the module, or of the image's manifest")
	cmd.Flags().StringVarP(&o.filename, "filename", "f", "", "file with WasmPlugins, instead of REF")
	cmd.Flags().DurationVar(&o.wait, "wait", 0, "go on trying for so long, instead of once")
	return cmd
}

func addDirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", wasm.DefaultDir, "directory of the store")
}

// wanted are the modules that the command line asks for, by the names of their plugins; the name of REF is "".
func (o pullOptions) wanted(args []string, namespace string) ([]wasmplugin.Plugin, error) {
	if o.filename == "" {
		if len(args) == 0 {
			return nil, &cli.UsageError{Err: errors.New("give the module that is to be fetched, or a file with WasmPlugins: --filename")}
		}
		src := wasm.Source{URL: args[0], SHA256: o.sha256}
		var err error
		if src.Plugin, err = o.plugin(); err == nil {
			err = o.readSecret(&src)
		}
		return []wasmplugin.Plugin{{Source: src}}, err
	}
	if len(args) > 0 || o.sha256 != "" || o.pluginOptions != (pluginOptions{}) {
		return nil, &cli.UsageError{Err: errors.New("flag --filename: a WasmPlugin says itself which module, of which hash and with which configuration")}
	}
	data, err := readFile(o.filename, maxPluginFile)
	if err != nil {
		return nil, fmt.Errorf("flag --filename: %w", err)
	}
	plugins, err := wasmplugin.Read(data, namespace)
	if err == nil && len(plugins) == 0 {
		err = errors.New("there is no WasmPlugin in it")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.filename, err)
	}
	for i := range plugins {
		if o.secret != "" {
			plugins[i].Source.Secret = ""
			err = errors.Join(err, o.readSecret(&plugins[i].Source))
		}
	}
	return plugins, err
}

func (o pullOptions) pull(e *cli.Env, cmd *cobra.Command, cfg *config.Config, wanted []wasmplugin.Plugin) error {
	log, err := e.Log(cmd)
	if err != nil {
		return err
	}
	helper, dir, err := newHelper(e, cfg)
	if err != nil {
		return fmt.Errorf("make a directory for an Envoy: %w", err)
	}
	defer os.RemoveAll(dir)
	c, err := settings.Store(cfg, o.dir, helper, logging.For(log, "wasm"))
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if o.wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.wait)
		defer cancel()
	}
	store := wasm.New(c)
	var errs []error
	for _, p := range wanted {
		p.Source.Policy, p.Source.Once = wasm.Always, o.wait == 0
		m, err := store.Resolve(ctx, p.Source)
		if err == nil {
			err = o.show(e.Stdout, p, m)
		}
		if err != nil && p.Name != "" {
			err = fmt.Errorf("WasmPlugin %s/%s: %w", p.Namespace, p.Name, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// show prints what was fetched.
func (o pullOptions) show(w io.Writer, p wasmplugin.Plugin, m wasm.Module) error {
	if o.output.IsJSON() {
		return cli.PrintJSON(w, m)
	}
	if p.Name != "" {
		fmt.Fprintf(w, "plugin: %s/%s\n", p.Namespace, p.Name)
	}
	fmt.Fprintf(w, "sha256: %s\nfile: %s\nbytes: %d\n", m.SHA256, m.Path, m.Size)
	if m.Digest != "" {
		fmt.Fprintf(w, "manifest: sha256:%s\n", m.Digest)
	}
	return nil
}

// readSecret takes the pull secret from a file, or by its name.
func (o pullOptions) readSecret(src *wasm.Source) error {
	if !strings.Contains(o.secret, string(filepath.Separator)) {
		src.Secret = o.secret
		return nil
	}
	data, err := readFile(o.secret, maxSecretFile)
	if err != nil {
		return fmt.Errorf("flag --secret: %w", err)
	}
	src.DockerConfig = data
	return nil
}

func newCacheCommand(e *cli.Env) *cobra.Command {
	var output cli.Output
	var dir string
	var prune bool
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "List the modules in the pod's store, or take away the unused ones",
		Long:  cacheHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Check(); err != nil {
				return err
			}
			log, err := e.Log(cmd)
			if err != nil {
				return err
			}
			store := wasm.New(wasm.Config{Dir: dir, MaxModule: wasm.DefaultMaxModule, Log: logging.For(log, "wasm")})
			if prune {
				removed, err := store.Prune()
				if err != nil {
					return errors.Join(fmt.Errorf("modules that were taken away: %d", removed), err)
				}
			}
			return showCache(e, store, output)
		},
	}
	output.AddFlag(cmd, "o")
	addDirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&prune, "prune", false, "take away what nobody uses")
	return cmd
}

func showCache(e *cli.Env, store *wasm.Store, output cli.Output) error {
	list, err := store.List()
	if err != nil {
		return err
	}
	if output.IsJSON() {
		return cli.PrintJSON(e.Stdout, list)
	}
	rows := cli.NewTable(e.Stdout, "SHA256", "BYTES", "USED", "FROM")
	for _, m := range list {
		used := control.Briefly(time.Since(m.Used)) + " ago"
		if m.InUse {
			used = "now"
		}
		rows.Add(m.SHA256, strconv.FormatInt(m.Size, 10), used, strings.Join(m.From, " "))
	}
	return rows.End()
}
