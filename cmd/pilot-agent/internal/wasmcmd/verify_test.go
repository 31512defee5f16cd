package wasmcmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
	"understudy.mesh/tests/proxywasm"
	"understudy.mesh/tests/realenvoy"
)

const root = "../../../.."

// runCommand runs `wasm` with arguments and an environment, and returns its exit status and what it printed. A machine that was too busy
// for its Envoy is asked again, for minutes.
func runCommand(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	for range 10 {
		status, stdout, stderr = runOnce(t, environ, args...)
		if !strings.Contains(stdout+stderr, "too busy for a try") {
			break
		}
	}
	return status, stdout, stderr
}

func runOnce(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &cli.Env{Args: append([]string{"wasm"}, args...), Environ: environ, Stdout: &out, Stderr: &errs}
	top := &cobra.Command{Use: "pilot-agent", SilenceUsage: true, SilenceErrors: true}
	top.AddCommand(New(e, func(e *cli.Env, cmd *cobra.Command, role config.Role) (*config.Config, []config.Warning, error) {
		return config.Load(config.Sources{Role: role, Flags: cli.GivenSettings(cmd), Environ: e.Environ})
	}))
	status = e.Run(t.Context(), top, e.Args)
	return status, out.String(), errs.String()
}

func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVerify(t *testing.T) {
	binary := "--binaryPath=" + realenvoy.Path(t, root)
	good := file(t, "good.wasm", proxywasm.Module{Header: "a", Value: "b"}.Bytes())
	status, stdout, stderr := runCommand(t, nil, "verify", good, binary)
	if status != 0 || !strings.Contains(stdout, "proxy-wasm ABI 0.2.1, functions of the host: 1, bytes: ") || !strings.Contains(stdout, "it starts in Envoy ") {
		t.Errorf("a good one: %d, %s%s", status, stdout, stderr)
	}
	config := file(t, "config", []byte(`{"a":"<b>"}`))
	status, stdout, stderr = runCommand(t, nil, "verify", good, binary, "--network", "--root-id=r", "--plugin-config="+config, "-o", "json")
	var report verifyReport
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || status != 0 || !report.Right || len(report.SHA256) != 64 || len(report.Findings) != 2 {
		t.Errorf("as a network filter: %d, %s%s, %v", status, stdout, stderr, err)
	}
	refusing := file(t, "refusing.wasm", proxywasm.Module{Configure: proxywasm.Refuses}.Bytes())
	status, stdout, stderr = runCommand(t, nil, "verify", refusing, binary)
	if status != 1 || !strings.Contains(stdout, "Envoy does not start it: ") || !strings.Contains(stdout, "Failed to configure base Wasm plugin") || !strings.Contains(stderr, "does not take this module") {
		t.Errorf("one that refuses its configuration: %d, %s%s", status, stdout, stderr)
	}
}

func TestVerifyWithoutAnEnvoy(t *testing.T) {
	good := file(t, "good.wasm", proxywasm.Module{}.Bytes())
	for _, tc := range []struct {
		why    string
		args   []string
		status int
		want   string
	}{
		{"no module", []string{file(t, "page", []byte("<html>"))}, 1, "structure  failed  not a module that Envoy runs: it begins with"},
		{"no Envoy", []string{good, "--binaryPath=/none"}, 1, "binaryPath in PROXY_CONFIG"},
		{"no file", []string{"/none"}, 1, "open /none: no such file"},
		{"a directory", []string{"/"}, 1, "is no regular file"},
		{"no configuration", []string{good, "--plugin-config=/none"}, 1, "flag --plugin-config: open /none"},
		{"too much configuration", []string{good, "--plugin-config=" + file(t, "large", make([]byte, maxPluginConfig+1))}, 1, "more than 1048576 bytes"},
		{"no argument", nil, 2, "accepts 1 arg"},
		{"another form", []string{good, "-o", "xml"}, 2, "give table or json"},
		{"a wrong setting", []string{good, "--statusPort=x"}, 2, "statusPort"},
	} {
		status, stdout, stderr := runCommand(t, nil, append([]string{"verify"}, tc.args...)...)
		if status != tc.status || !strings.Contains(stdout+stderr, tc.want) {
			t.Errorf("%s: %d, %s%s; want %d, %q", tc.why, status, stdout, stderr, tc.status, tc.want)
		}
	}
}
