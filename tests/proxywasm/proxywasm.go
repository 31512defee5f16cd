// Package proxywasm assembles small proxy-wasm modules for tests: valid ones that add a response header, and ones with one chosen
// fault. It needs no compiler, and each byte of a module is written here, so that a test can break what it means to break.
package proxywasm

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
)

// What proxy_on_configure of a module does.
const (
	Accepts = iota // returns true
	Refuses        // returns false
	Loops          // never returns
	Traps          // executes unreachable
)

// Import is a function that a module wants of its host. Type has a letter for each parameter, i for i32 and I for i64, and after a
// colon those of the results: "iI:i"; "" is a function without either.
type Import struct{ Module, Name, Type string }

// Module says what is assembled. The zero value is a valid module of ABI 0.2.1 that does nothing.
type Module struct {
	// Header and Value are added to each response; "": none.
	Header, Value string
	// Configure is one of the constants.
	Configure int
	// ABI replaces the exported function that names the version of the ABI; "-" exports none.
	ABI string
	// SecondABI is exported too; "": none.
	SecondABI string
	// Memory replaces the name by which the memory is exported; "-" exports none.
	Memory string
	// Imports are wanted besides what the header takes.
	Imports []Import
	// Pad is how many bytes, which do not compress, a custom section has; Salt makes them others.
	Pad  int
	Salt uint64
	// Functions is how many functions besides the module has, each of some hundred instructions, which take an Envoy time to compile.
	Functions int
}

// Types of the module's own functions, by their index in the section; those of the imports follow them.
const (
	typeNone = iota
	typeAlloc
	typeCreate
	typeStart
	typeHeaders
)

var ownTypes = [...]string{"", "i:i", "ii", "ii:i", "iii:i"}

// Where the module's memory has what it needs.
const (
	headerAt = 1024
	valueAt  = 2048
	heapAt   = 4096
)

// Bytes is the module.
func (m Module) Bytes() []byte {
	imports := append([]Import{{"env", "proxy_add_header_map_value", "iiiii:i"}}, m.Imports...)
	out := bytes.NewBuffer([]byte("\x00asm\x01\x00\x00\x00"))
	section(out, 1, types(imports))
	var in bytes.Buffer
	in.Write(number(uint64(len(imports))))
	for i, f := range imports {
		in.Write(text(f.Module))
		in.Write(text(f.Name))
		in.WriteByte(0)
		in.Write(number(uint64(len(ownTypes) + i)))
	}
	section(out, 2, in.Bytes())
	functions := m.functions()
	var types, code bytes.Buffer
	types.Write(number(uint64(len(functions) + m.Functions)))
	code.Write(number(uint64(len(functions) + m.Functions)))
	for _, f := range functions {
		types.WriteByte(f.kind)
		code.Write(number(uint64(len(f.body) + 2)))
		code.WriteByte(0)
		code.Write(f.body)
		code.WriteByte(0x0b)
	}
	filler := filling()
	for range m.Functions {
		types.WriteByte(typeAlloc)
		code.Write(filler)
	}
	section(out, 3, types.Bytes())
	section(out, 5, []byte{1, 0, 1}) // one memory of one page
	section(out, 7, m.exports(functions, len(imports)))
	section(out, 10, code.Bytes())
	section(out, 11, m.data())
	if m.Pad > 0 {
		pad := make([]byte, m.Pad)
		r := rand.New(rand.NewPCG(m.Salt, 1))
		for i := range pad {
			pad[i] = byte(r.Uint32())
		}
		section(out, 0, append(text("pad"), pad...))
	}
	return out.Bytes()
}

func types(imports []Import) []byte {
	all := ownTypes[:]
	for _, f := range imports {
		all = append(all, f.Type)
	}
	out := number(uint64(len(all)))
	for _, signature := range all {
		parameters, results, _ := strings.Cut(signature, ":")
		out = append(out, 0x60)
		for _, letters := range []string{parameters, results} {
			out = append(out, number(uint64(len(letters)))...)
			for _, letter := range letters {
				out = append(out, map[rune]byte{'i': 0x7f, 'I': 0x7e}[letter])
			}
		}
	}
	return out
}

type function struct {
	name string
	kind byte
	body []byte
}

func (m Module) functions() []function {
	configure := map[int][]byte{
		Accepts: constant(1),
		Refuses: constant(0),
		Loops:   append([]byte{0x03, 0x40, 0x0c, 0x00, 0x0b}, constant(1)...), // loop br 0 end
		Traps:   {0x00},
	}[m.Configure]
	respond := constant(0)
	if m.Header != "" {
		respond = bytes.Join([][]byte{
			constant(2), constant(headerAt), constant(len(m.Header)), constant(valueAt), constant(len(m.Value)), // of the response
			{0x10, 0, 0x1a}, // call import 0, drop
			constant(0),
		}, nil)
	}
	abi := m.ABI
	if abi == "" {
		abi = "proxy_abi_version_0_2_1"
	}
	headers := byte(typeHeaders)
	if abi == "proxy_abi_version_0_1_0" {
		headers = typeStart // without the end of the stream
	}
	return []function{
		{abi, typeNone, nil},
		{"proxy_on_memory_allocate", typeAlloc, constant(heapAt)},
		{"proxy_on_context_create", typeCreate, nil},
		{"proxy_on_vm_start", typeStart, constant(1)},
		{"proxy_on_configure", typeStart, configure},
		{"proxy_on_response_headers", headers, respond},
		{m.SecondABI, typeNone, nil},
	}
}

func (m Module) exports(functions []function, imports int) []byte {
	count, out := 0, new(bytes.Buffer)
	add := func(name string, kind byte, index int) {
		if name != "" && name != "-" {
			count++
			out.Write(text(name))
			out.WriteByte(kind)
			out.Write(number(uint64(index)))
		}
	}
	memory := m.Memory
	if memory == "" {
		memory = "memory"
	}
	add(memory, 2, 0)
	for i, f := range functions {
		add(f.name, 0, imports+i)
	}
	return append(number(uint64(count)), out.Bytes()...)
}

func (m Module) data() []byte {
	out := []byte{2}
	for _, d := range []struct {
		at   int
		text string
	}{{headerAt, m.Header}, {valueAt, m.Value}} {
		out = append(out, 0)
		out = append(out, constant(d.at)...)
		out = append(out, 0x0b)
		out = append(out, text(d.text)...)
	}
	return out
}

// filling is the code of a function that does nothing of use.
func filling() []byte {
	body := []byte{0, 0x20, 0} // no locals; local.get 0
	for i := range 200 {
		body = append(body, 0x20, 0)
		body = append(body, constant(i+1)...)
		body = append(body, 0x6c, 0x6a) // i32.mul i32.add
	}
	body = append(body, 0x0b)
	return append(number(uint64(len(body))), body...)
}

func section(out *bytes.Buffer, id byte, body []byte) {
	out.WriteByte(id)
	out.Write(number(uint64(len(body))))
	out.Write(body)
}

func text(s string) []byte { return append(number(uint64(len(s))), s...) }

func number(n uint64) []byte { return binary.AppendUvarint(nil, n) }

// constant is the instruction i32.const.
func constant(n int) []byte {
	out := []byte{0x41}
	for {
		b := byte(n & 0x7f)
		n >>= 7
		if n == 0 && b&0x40 == 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}
