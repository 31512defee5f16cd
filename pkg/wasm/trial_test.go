package wasm_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/tests/proxywasm"
	"understudy.mesh/tests/realenvoy"
)

// trialOf is of a module in a file of its own.
func trialOf(t *testing.T, m proxywasm.Module, plugin wasm.Plugin) wasm.Trial {
	t.Helper()
	path, module := filepath.Join(t.TempDir(), "module.wasm"), m.Bytes()
	if err := os.WriteFile(path, module, 0o644); err != nil {
		t.Fatal(err)
	}
	return wasm.Trial{Path: path, Size: int64(len(module)), Plugin: plugin}
}

func realHelper(t *testing.T) patientHelper {
	t.Helper()
	return patientHelper{envoy.NewHelper(envoy.HelperConfig{Binary: realenvoy.Path(t, "../.."), Dir: t.TempDir()})}
}

// patientHelper tries again on a machine that was too busy, for minutes: its Envoys come after everybody else.
type patientHelper struct{ *envoy.Helper }

func (h patientHelper) Validate(ctx context.Context, bootstrap []byte, memory int64) (refused, skipped string, err error) {
	for range 10 {
		refused, skipped, err = h.Helper.Validate(ctx, bootstrap, memory)
		if err == nil || !strings.Contains(err.Error(), "too busy for a try") {
			break
		}
	}
	return refused, skipped, err
}

// TestTrials has a real Envoy try modules; what it refuses, it refuses with this configuration only.
func TestTrials(t *testing.T) {
	helper := realHelper(t)
	open := func(form string) wasm.Plugin { return wasm.Plugin{Config: json.RawMessage(form)} }
	for _, tc := range []struct {
		why     string
		module  proxywasm.Module
		plugin  wasm.Plugin
		refused string // "" is a module that starts
	}{
		{"a good one", proxywasm.Module{Header: "a", Value: "b"}, wasm.Plugin{}, ""},
		{"as a network filter", proxywasm.Module{}, wasm.Plugin{Network: true}, ""},
		{"with another's code", proxywasm.Module{}, open(`{"name":"n","rootId":"r","vm_config":{"vm_id":"v","runtime":"envoy.wasm.runtime.v8","code":{"remote":{}}}}`), ""},
		{"of the second spelling", proxywasm.Module{}, open(`{"root_id":"r","vmConfig":{"vmId":"v","code":{"local":{"filename":"/none"}}},"failOpen":true}`), ""},
		{"it refuses", proxywasm.Module{Configure: proxywasm.Refuses}, wasm.Plugin{}, "Failed to configure base Wasm plugin"},
		{"it refuses, though the filter fails open", proxywasm.Module{Configure: proxywasm.Refuses}, open(`{"failure_policy":"FAIL_OPEN","fail_open":true}`), "Failed to configure"},
		{"it traps", proxywasm.Module{Configure: proxywasm.Traps}, wasm.Plugin{}, "unreachable"},
		{"another runtime", proxywasm.Module{}, open(`{"vmConfig":{"runtime":"envoy.wasm.runtime.none"}}`), "Failed to load Wasm code"},
		{"an unknown field", proxywasm.Module{}, open(`{"nonsense":1}`), "nonsense"},
	} {
		skipped, err := trialOf(t, tc.module, tc.plugin).Run(t.Context(), helper)
		if skipped != "" {
			t.Fatalf("%s: not tried: %s", tc.why, skipped)
		}
		if tc.refused == "" && err != nil || tc.refused != "" && (err == nil || !errors.As(err, new(*wasm.RefusedError)) || !strings.Contains(err.Error(), tc.refused)) {
			t.Errorf("%s: %v; want %q", tc.why, err, tc.refused)
		}
	}
}

// standIn is an Envoy that answers as it is told.
type standIn struct {
	refused, skipped string
	err              error
	memory           int64
}

func (e *standIn) Validate(_ context.Context, _ []byte, memory int64) (string, string, error) {
	e.memory = memory
	return e.refused, e.skipped, e.err
}

func (*standIn) Version(context.Context) (string, error) { return "1", nil }

func TestTrialOutcomes(t *testing.T) {
	trial := wasm.Trial{Path: "m", Size: 50 << 20}
	e := &standIn{skipped: "no memory"}
	if skipped, err := trial.Run(t.Context(), e); skipped != "no memory" || err != nil || e.memory < 5*trial.Size {
		t.Errorf("%q, %v, for %d bytes", skipped, err, e.memory)
	}
	if _, err := trial.Run(t.Context(), &standIn{err: os.ErrNotExist}); !errors.Is(err, os.ErrNotExist) || errors.As(err, new(*wasm.RefusedError)) {
		t.Errorf("no Envoy: %v", err)
	}
	trial.Plugin.Config = []byte("{")
	if _, err := trial.Run(t.Context(), e); err == nil || !strings.Contains(err.Error(), "want a PluginConfig in JSON") {
		t.Errorf("no configuration: %v", err)
	}
}

// hostSignatures are the types of the functions that Check knows, by which an Envoy links; of path_link and path_symlink they are not WASI's.
var hostSignatures = map[string]string{
	"emscripten_notify_memory_growth": "i",
	"proxy_add_header_map_value":      "iiiii:i", "proxy_call_foreign_function": "iiiiii:i", "proxy_clear_route_cache": ":i",
	"proxy_define_metric": "iiii:i", "proxy_dequeue_shared_queue": "iii:i", "proxy_done": ":i", "proxy_enqueue_shared_queue": "iii:i",
	"proxy_get_buffer_bytes": "iiiii:i", "proxy_get_buffer_status": "iii:i", "proxy_get_current_time_nanoseconds": "i:i",
	"proxy_get_header_map_pairs": "iii:i", "proxy_get_header_map_size": "ii:i", "proxy_get_header_map_value": "iiiii:i",
	"proxy_get_metric": "ii:i", "proxy_get_property": "iiii:i", "proxy_get_shared_data": "iiiii:i", "proxy_get_status": "iii:i",
	"proxy_grpc_call": "iiiiiiiiiiii:i", "proxy_grpc_cancel": "i:i", "proxy_grpc_close": "i:i", "proxy_grpc_send": "iiii:i",
	"proxy_grpc_stream": "iiiiiiiii:i", "proxy_http_call": "iiiiiiiiii:i", "proxy_increment_metric": "iI:i", "proxy_log": "iii:i",
	"proxy_record_metric": "iI:i", "proxy_register_shared_queue": "iii:i", "proxy_remove_header_map_value": "iii:i",
	"proxy_replace_header_map_value": "iiiii:i", "proxy_resolve_shared_queue": "iiiii:i", "proxy_send_local_response": "iiiiiiii:i",
	"proxy_set_buffer_bytes": "iiiii:i", "proxy_set_effective_context": "i:i", "proxy_set_header_map_pairs": "iii:i",
	"proxy_set_property": "iiii:i", "proxy_set_shared_data": "iiiii:i", "proxy_set_tick_period_milliseconds": "i:i",
	"proxy_get_configuration": "ii:i", "proxy_continue_request": ":i", "proxy_continue_response": ":i",
	"proxy_continue_stream": "i:i", "proxy_close_stream": "i:i", "proxy_get_log_level": "i:i",

	"args_get": "ii:i", "args_sizes_get": "ii:i", "clock_res_get": "ii:i", "clock_time_get": "iIi:i", "environ_get": "ii:i",
	"environ_sizes_get": "ii:i", "fd_advise": "iIIi:i", "fd_allocate": "iII:i", "fd_close": "i:i", "fd_datasync": "i:i",
	"fd_fdstat_get": "ii:i", "fd_fdstat_set_flags": "ii:i", "fd_fdstat_set_rights": "iII:i", "fd_filestat_get": "ii:i",
	"fd_filestat_set_size": "iI:i", "fd_filestat_set_times": "iIIi:i", "fd_pread": "iiiIi:i", "fd_prestat_dir_name": "iii:i",
	"fd_prestat_get": "ii:i", "fd_pwrite": "iiiIi:i", "fd_read": "iiii:i", "fd_readdir": "iiiIi:i", "fd_renumber": "ii:i",
	"fd_seek": "iIii:i", "fd_sync": "i:i", "fd_tell": "ii:i", "fd_write": "iiii:i", "path_create_directory": "iii:i",
	"path_filestat_get": "iiiii:i", "path_filestat_set_times": "iiiiIIi:i", "path_link": "iiiiii:i", "path_open": "iiiiiIIii:i",
	"path_readlink": "iiiiii:i", "path_remove_directory": "iii:i", "path_rename": "iiiiii:i", "path_symlink": "iiii:i",
	"path_unlink_file": "iii:i", "poll_oneoff": "iiii:i", "proc_exit": "i", "random_get": "ii:i",
	"sched_yield": ":i", "sock_accept": "iii:i", "sock_recv": "iiiiii:i", "sock_send": "iiiii:i", "sock_shutdown": "ii:i",
}

// firstVersions and laterVersions are functions that only some versions of the interface have.
var (
	firstVersions = []string{"proxy_get_configuration", "proxy_continue_request", "proxy_continue_response", "proxy_clear_route_cache"}
	laterVersions = []string{"proxy_continue_stream", "proxy_close_stream", "proxy_get_log_level"}
)

// TestEnvoyHasTheFunctionsThatCheckKnows: a real one links a module that imports them all.
func TestEnvoyHasTheFunctionsThatCheckKnows(t *testing.T) {
	helper := realHelper(t)
	for version, not := range map[string][]string{"0_1_0": laterVersions, "0_2_1": firstVersions} {
		m := proxywasm.Module{ABI: "proxy_abi_version_" + version}
		for _, name := range wasm.HostFunctions() {
			signature, ok := hostSignatures[name.Name]
			if !ok {
				t.Fatalf("%s: its type is missing here", name)
			}
			name.Type = signature
			if !slices.Contains(not, name.Name) {
				m.Imports = append(m.Imports, name)
			}
		}
		if _, err := trialOf(t, m, wasm.Plugin{}).Run(t.Context(), helper); err != nil {
			t.Errorf("version %s, with %d functions: %v", version, len(m.Imports), err)
		}
	}
}
