package frame_test

import (
	"bytes"
	"strings"
	"testing"

	"understudy.mesh/pkg/wasm/internal/frame"
	"understudy.mesh/tests/proxywasm"
)

func check(module []byte) (frame.Info, error) {
	return frame.Check(bytes.NewReader(module), int64(len(module)))
}

func TestCheck(t *testing.T) {
	info, err := check(proxywasm.Module{Header: "a", Value: "b", Pad: 1 << 20, Functions: 100}.Bytes())
	if err != nil || info != (frame.Info{ABI: "0.2.1", Imports: 1}) {
		t.Errorf("%+v, %v", info, err)
	}
	for _, version := range []string{"0.1.0", "0.2.0"} {
		info, err := check(proxywasm.Module{ABI: "proxy_abi_version_" + strings.ReplaceAll(version, ".", "_"), Memory: "m"}.Bytes())
		if err != nil || info.ABI != version {
			t.Errorf("%s: %+v, %v", version, info, err)
		}
	}
	for _, function := range []proxywasm.Import{{Module: "env", Name: "proxy_log"}, {Module: "wasi_snapshot_preview1", Name: "fd_write"}, {Module: "wasi_unstable", Name: "proc_exit"}} {
		if _, err := check(proxywasm.Module{Imports: []proxywasm.Import{function}}.Bytes()); err != nil {
			t.Errorf("%v: %v", function, err)
		}
	}
}

func TestCheckSaysWhatIsWrong(t *testing.T) {
	valid := proxywasm.Module{Header: "a", Value: "b"}.Bytes()
	replaced := func(at int, with ...byte) []byte {
		module := bytes.Clone(valid)
		copy(module[at:], with)
		return module
	}
	for _, tc := range []struct {
		why    string
		module []byte
		want   string
	}{
		{"nothing", nil, "the file is empty"},
		{"a page of HTML", []byte("<html><body>404"), `it begins with "<html><b"`},
		{"three bytes", []byte("\x00as"), `it begins with "\x00as"`},
		{"a program", []byte("\x7fELF\x02\x01\x01\x00"), "compile for wasm32"},
		{"an archive", []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00"), "it is compressed"},
		{"the text form", []byte("(module (func))"), "wat2wasm"},
		{"a component", []byte("\x00asm\x0d\x00\x01\x00"), "a component of WASI 0.2"},
		{"another version", replaced(4, 2), "version 02000000"},
		{"only a header", valid[:8], "no function proxy_abi_version_"},
		{"cut off in a section", valid[:len(valid)-1], `section "data" at byte`},
		{"cut off in a head", valid[:9], "ends in the middle of an entry, at byte 9"},
		{"an unknown section", replaced(8, 99), "at byte 8 begins a section of the unknown kind 99"},
		{"a section twice", append(bytes.Clone(valid), 5, 3, 1, 0, 1), `section "memory" at byte`},
		{"a number without an end", append(bytes.Clone(valid), 0, 0xff, 0xff, 0xff, 0xff, 0xff, 1), "beyond 32 bits"},
		{"a section longer than its entries", append(bytes.Clone(valid[:8]), 7, 2, 0, 0), "longer than what is in it"},
		{"a name longer than its section", append(bytes.Clone(valid[:8]), 7, 3, 1, 0x7f, 0), "the name at byte 11 is to have 127 bytes"},
		{"a name that is no text", append(bytes.Clone(valid[:8]), 7, 5, 1, 1, 0xff, 0, 0), "no UTF-8"},
		{"more entries than bytes", append(bytes.Clone(valid[:8]), 7, 5, 0xff, 0xff, 0xff, 0xff, 0x0f), "in the middle of an entry"},
		{"no version", proxywasm.Module{ABI: "-"}.Bytes(), "want one of 0.1.0, 0.2.0, 0.2.1"},
		{"a future version", proxywasm.Module{ABI: "proxy_abi_version_0_3_0"}.Bytes(), "it exports proxy_abi_version_0_3_0"},
		{"two versions", proxywasm.Module{SecondABI: "proxy_abi_version_0_2_0"}.Bytes(), "proxy_abi_version_0_2_1 and proxy_abi_version_0_2_0"},
		{"no memory", proxywasm.Module{Memory: "-"}.Bytes(), "it exports no memory"},
		{"an unknown function", proxywasm.Module{Imports: []proxywasm.Import{{Module: "env", Name: "proxy_nope"}}}.Bytes(), "the function env.proxy_nope, which no Envoy has"},
		{"a function of threads", proxywasm.Module{Imports: []proxywasm.Import{{Module: "wasi_snapshot_preview1", Name: "thread_spawn"}}}.Bytes(), "such as threads"},
		{"a function of JavaScript", proxywasm.Module{Imports: []proxywasm.Import{{Module: "gojs", Name: "runtime.wasmExit"}}}.Bytes(), "JavaScript's"},
		{"an imported memory", append(bytes.Clone(valid[:8]), 2, 15, 1, 3, 'e', 'n', 'v', 6, 'm', 'e', 'm', 'o', 'r', 'y', 2, 0, 1), "imports the memory env.memory"},
	} {
		_, err := check(tc.module)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want %q", tc.why, err, tc.want)
		}
	}
}

// A file that is shorter than was said, as one that is cut while it is read.
func TestCheckOfAShorterFile(t *testing.T) {
	valid := proxywasm.Module{}.Bytes()
	for size := range len(valid) {
		if _, err := frame.Check(bytes.NewReader(valid[:size]), int64(len(valid))); size < 8 && err == nil {
			t.Errorf("%d of %d bytes: no error", size, len(valid))
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(proxywasm.Module{Header: "a", Value: "b"}.Bytes())
	f.Add(proxywasm.Module{Imports: []proxywasm.Import{{Module: "env", Name: "proxy_log"}}, Functions: 2, Pad: 3}.Bytes())
	f.Add(proxywasm.Module{ABI: "-"}.Bytes())
	f.Fuzz(func(t *testing.T, module []byte) {
		info, err := check(module)
		if (err == nil) != (info.ABI != "") {
			t.Errorf("%+v, %v", info, err)
		}
	})
}
