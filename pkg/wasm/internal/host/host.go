// Package host owns what an Envoy gives a Wasm module: the versions of proxy-wasm's interface, and the functions that a module may import.
package host

import (
	"slices"
	"strings"
)

// ABIPrefix begins the name of the exported function that says which version of proxy-wasm's interface a module is made for.
const ABIPrefix = "proxy_abi_version_"

// abis are the versions that Envoy has, from proxy-wasm's specification and proxy-wasm-cpp-host.
var abis = [...]string{"0.1.0", "0.2.0", "0.2.1"}

// ABI is the version that a function stands for, "" for one that is not known.
func ABI(function string) string {
	version := strings.ReplaceAll(strings.TrimPrefix(function, ABIPrefix), "_", ".")
	if !slices.Contains(abis[:], version) {
		return ""
	}
	return version
}

// ABIs are all versions, for people.
func ABIs() string { return strings.Join(abis[:], ", ") }

// env are what proxy-wasm-cpp-host registers for all versions of the interface, in module env. An Envoy links a module
// whose imports exist by name and type; a test asks a real one about each name.
var env = strings.Fields(`
emscripten_notify_memory_growth
proxy_add_header_map_value proxy_call_foreign_function proxy_clear_route_cache proxy_close_stream proxy_continue_request
proxy_continue_response proxy_continue_stream proxy_define_metric proxy_dequeue_shared_queue proxy_done proxy_enqueue_shared_queue
proxy_get_buffer_bytes proxy_get_buffer_status proxy_get_configuration proxy_get_current_time_nanoseconds proxy_get_header_map_pairs
proxy_get_header_map_size proxy_get_header_map_value proxy_get_log_level proxy_get_metric proxy_get_property proxy_get_shared_data
proxy_get_status proxy_grpc_call proxy_grpc_cancel proxy_grpc_close proxy_grpc_send proxy_grpc_stream proxy_http_call
proxy_increment_metric proxy_log proxy_record_metric proxy_register_shared_queue proxy_remove_header_map_value
proxy_replace_header_map_value proxy_resolve_shared_queue proxy_send_local_response proxy_set_buffer_bytes
proxy_set_effective_context proxy_set_header_map_pairs proxy_set_property proxy_set_shared_data proxy_set_tick_period_milliseconds
`)

// wasi are those of WASI 0.1 (wasi_snapshot_preview1) that Envoy has, many of them to refuse by an error at run time.
var wasi = strings.Fields(`
args_get args_sizes_get clock_res_get clock_time_get environ_get environ_sizes_get fd_advise fd_allocate fd_close fd_datasync
fd_fdstat_get fd_fdstat_set_flags fd_fdstat_set_rights fd_filestat_get fd_filestat_set_size fd_filestat_set_times fd_pread
fd_prestat_dir_name fd_prestat_get fd_pwrite fd_read fd_readdir fd_renumber fd_seek fd_sync fd_tell fd_write path_create_directory
path_filestat_get path_filestat_set_times path_link path_open path_readlink path_remove_directory path_rename path_symlink
path_unlink_file poll_oneoff proc_exit random_get sched_yield sock_accept sock_recv sock_send sock_shutdown
`)

// Functions are those that some Envoy gives a module, of a module of imports by its name.
func Functions(module string) []string {
	switch module {
	case "env":
		return env
	case "wasi_snapshot_preview1", "wasi_unstable":
		return wasi
	}
	return nil
}

// Remedy is what helps against an import that nobody has.
func Remedy(module string) string {
	switch module {
	case "env":
		return "a function of its own that was not linked in, or of a host that is no Envoy; build it with a proxy-wasm SDK for Envoy"
	case "wasi_snapshot_preview1", "wasi_unstable":
		return "leave out what needs it, such as threads"
	}
	return "want functions of env, wasi_snapshot_preview1 and wasi_unstable; compile for wasm32-wasip1, without JavaScript's or another host's bindings"
}
