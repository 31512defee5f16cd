package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
)

// TestMain lets scripts run this test binary as pilot-agent.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pilot-agent": func() { os.Exit(runProcess()) }})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

// runArgs runs a command line in this process.
func runArgs(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	e := &cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs}
	status = run(context.Background(), e)
	return status, out.String(), errs.String()
}

// TestUsageErrors has a wrong command line for each way there is: status 2, one line.
func TestUsageErrors(t *testing.T) {
	for _, tc := range []struct{ line, want string }{
		{"nonsense", "unknown command"},
		{"dns nonsense", "unknown command"},
		{"version extra", "unknown command"},
		{"version --nonsense", "unknown flag: --nonsense"},
		{"version -o xml", `"xml": give yaml or json`},
		{"version --log_output_level", "flag needs an argument"},
		{"wait --nonsense", "unknown flag: --nonsense"},
		{"wait --for=ever", `flag --for: "ever": give serving or drained`},
		{"wait --timeoutSeconds=0", "flag --timeoutSeconds: 0: give a positive number"},
		{"wait --periodMillis=-1", "flag --periodMillis: -1: give a positive number"},
		{"upgrade-status -o yaml", `flag --output: "yaml": give table or json`},
		{"upgrade-status extra", "unknown command"},
		{"status -o yaml", `flag --output: "yaml": give table or json`},
		{"status extra", "unknown command"},
		{"dns table -o yaml", `flag --output: "yaml": give table or json`},
		{"dns upstreams -o xml", `flag --output: "xml": give table or json`},
		{"dns upstreams extra", "unknown command"},
		{"dns cache a b", "accepts at most 1 arg(s)"},
		{"dns lookup", "accepts 1 arg(s)"},
		{"request --debug-port=0 GET /", "flag --debug-port: 0: give a port from 1 to 65535"},
		{"request --debug-port=65536 GET /", "flag --debug-port: 65536: give a port from 1 to 65535"},
		{"request GET", "accepts between 2 and 3 arg(s)"},
		{"istio-iptables --nonsense", "unknown flag: --nonsense"},
		{"proxy waypoint", `role="waypoint": want sidecar or router`},
		{"proxy sidecar router", "accepts at most 1 arg(s)"},
		{"proxy --takeover=yes", `command line: --takeover="yes": want auto or force`},
		{"proxy --statusPort=x", `command line: --statusPort="x": want a port`},
		{"proxy --concurrency", "flag needs an argument: --concurrency"},
	} {
		t.Run(tc.line, func(t *testing.T) {
			status, _, stderr := runArgs(strings.Fields(tc.line)...)
			if status != 2 {
				t.Errorf("status %d, want %d", status, 2)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tc.want) {
				t.Errorf("stderr %q, want one line with %q", stderr, tc.want)
			}
		})
	}
}

// TestExitStatuses has what is neither a wrong command line nor needs an agent or a pod.
func TestExitStatuses(t *testing.T) {
	for line, want := range map[string]int{
		"": 0, "--help": 0, "dns": 0, "doctor --help": 0, "version": 0, "completion bash": 0, "istio-iptables --help": 0,
		"proxy sidecar --configDir=":                          1, // no istiod yet
		"proxy sidecar --configDir=/none --log_target=/none/": 1,
		"istio-iptables --network-namespace=/none":            1,
		"doctor capture --network-namespace=/none":            1,
		"istio-clean-iptables --network-namespace=/none":      1,
	} {
		if status, _, stderr := runArgs(strings.Fields(line)...); status != want {
			t.Errorf("%q: exit status %d, want %d: %s", line, status, want, stderr)
		}
	}
}

func TestSplitUnknown(t *testing.T) {
	flags := pflag.NewFlagSet("t", pflag.ContinueOnError)
	cli.AddSettings(flags, false)
	cli.AddSettings(flags, true)
	flags.StringP("output", "o", "", "")
	flags.BoolP("short", "s", false, "")
	for _, tc := range []struct{ args, known, unknown string }{
		{"proxy sidecar --domain d --concurrency=2", "proxy sidecar --domain d --concurrency=2", ""},
		{"proxy --nope sidecar --domain d", "proxy sidecar --domain d", "--nope"},
		{"proxy sidecar --nope value --domain d", "proxy sidecar --domain d", "--nope"},
		{"proxy --nope=value router -q 3 -z", "proxy router", "--nope -q -z"},
		{"proxy --log_as_json sidecar", "proxy --log_as_json sidecar", ""},
		{"proxy --domain --nope", "proxy --domain --nope", ""},
		{"-o json -sx -ojson", "-o json -sx -ojson", ""},
		{"proxy -- --nope", "proxy -- --nope", ""},
		{"proxy - --nope", "proxy -", "--nope"},
		{"--domain", "--domain", ""},
	} {
		known, unknown := splitUnknown(flags, strings.Fields(tc.args))
		if got := [2]string{strings.Join(known, " "), strings.Join(unknown, " ")}; got != [2]string{tc.known, tc.unknown} {
			t.Errorf("%s: %q", tc.args, got)
		}
	}
}

// TestGivenSettings checks what a command line means to config.Load, in all spellings.
func TestGivenSettings(t *testing.T) {
	root := newRootCommand(&cli.Env{})
	cmd, _, err := root.Find([]string{"proxy"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags([]string{"--domain", "a.b", "--concurrency=2", "--log_as_json", "--controlPlaneBootstrap=false", "--handoffDir="}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"domain": "a.b", "concurrency": "2", "log_as_json": "true", "controlPlaneBootstrap": "false", "handoffDir": ""}
	if diff := cmp.Diff(want, cli.GivenSettings(cmd)); diff != "" {
		t.Errorf("given (-want +got):\n%s", diff)
	}
}

// TestCompletion asks for the values of each flag that has a few fixed ones.
func TestCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"wait --for":              "serving drained",
		"upgrade-status --output": "table json",
		"proxy --takeover":        "auto force",
	} {
		status, stdout, _ := runArgs(append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		values, _, _ := strings.Cut(stdout, ":")
		if got := strings.Join(strings.Fields(values), " "); status != 0 || got != want {
			t.Errorf("%s: status %d, %q, want %q", line, status, got, want)
		}
	}
}

func TestBuildOutput(t *testing.T) {
	b := buildInfo{Version: "1.2.3", GitRevision: "abc", GolangVersion: "go1", BuildStatus: "Clean", GitTag: "1.2.3"}
	for _, tc := range []struct {
		short        bool
		output, want string
	}{
		{false, "", `client version: version.BuildInfo{Version:"1.2.3", GitRevision:"abc", GolangVersion:"go1", BuildStatus:"Clean", GitTag:"1.2.3"}` + "\n"},
		{true, "", "client version: 1.2.3\n"},
		{false, "yaml", "clientVersion:\n  golang_version: go1\n  revision: abc\n  status: Clean\n  tag: 1.2.3\n  version: 1.2.3\n"},
		{true, "json", "{\n  \"clientVersion\": {\n    \"version\": \"1.2.3\",\n    \"revision\": \"abc\",\n    \"golang_version\": \"go1\",\n    \"status\": \"Clean\",\n    \"tag\": \"1.2.3\"\n  }\n}\n"},
	} {
		var out bytes.Buffer
		if err := printVersion(&cli.Env{Stdout: &out}, b, tc.short, tc.output); err != nil || out.String() != tc.want {
			t.Errorf("%v %q: %v\n%s", tc.short, tc.output, err, out.String())
		}
	}
}

func FuzzSplitUnknown(f *testing.F) {
	f.Add("proxy sidecar --domain d --nope x -q")
	f.Add("-- -")
	f.Add("--=x -= -o=")
	f.Fuzz(func(t *testing.T, line string) {
		flags := pflag.NewFlagSet("t", pflag.ContinueOnError)
		cli.AddSettings(flags, false)
		args := strings.Fields(line)
		known, unknown := splitUnknown(flags, args)
		if len(known)+len(unknown) > len(args) {
			t.Fatalf("%q: %q and %q", args, known, unknown)
		}
		again, none := splitUnknown(flags, known)
		if diff := cmp.Diff(known, again); len(none) > 0 || diff != "" {
			t.Fatalf("not stable: %q, then %q (%q)", known, again, none)
		}
	})
}
