package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
)

// version is set at link time: -ldflags "-X main.version=1.2.3".
var version = ""

// buildInfo describes this binary; its names are those of Istio's `version -o json`.
type buildInfo struct {
	Version       string `json:"version"`
	GitRevision   string `json:"revision"`
	GolangVersion string `json:"golang_version"`
	BuildStatus   string `json:"status"`
	GitTag        string `json:"tag"`
}

// currentBuild reads what the linker and the go command have left in the binary.
func currentBuild() buildInfo {
	b := buildInfo{Version: cmp.Or(version, "dev"), GitRevision: "unknown", BuildStatus: "unknown", GitTag: version}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.GolangVersion = info.GoVersion
	if version == "" && info.Main.Version != "(devel)" {
		b.Version = cmp.Or(info.Main.Version, "dev")
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.GitRevision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			b.BuildStatus = "Modified"
		case s.Key == "vcs.modified":
			b.BuildStatus = "Clean"
		}
	}
	return b
}

func newVersionCommand(e *cli.Env) *cobra.Command {
	var short bool
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return printVersion(e, currentBuild(), short, output) },
	}
	cmd.Flags().BoolVarP(&short, "short", "s", false, "print the version alone")
	cmd.Flags().StringVarP(&output, "output", "o", "", "yaml or json, or nothing for text")
	return cmd
}

func printVersion(e *cli.Env, b buildInfo, short bool, output string) error {
	document := map[string]buildInfo{"clientVersion": b}
	var text []byte
	var err error
	switch {
	case output == "json":
		text, err = json.MarshalIndent(document, "", "  ")
		text = append(text, '\n')
	case output == "yaml":
		text, err = yaml.Marshal(document)
	case output != "":
		return &cli.UsageError{Err: fmt.Errorf("flag --output: %q: give yaml or json, or leave it out", output)}
	case short:
		text = fmt.Appendf(nil, "client version: %s\n", b.Version)
	default:
		text = fmt.Appendf(nil, "client version: version.BuildInfo{Version:%q, GitRevision:%q, GolangVersion:%q, BuildStatus:%q, GitTag:%q}\n",
			b.Version, b.GitRevision, b.GolangVersion, b.BuildStatus, b.GitTag)
	}
	if err != nil {
		return fmt.Errorf("print the version as %s: %w", output, err)
	}
	_, err = e.Stdout.Write(text)
	return err
}
