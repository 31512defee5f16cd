// Package frame owns the frame of a Wasm module: its header, the bounds and order of its sections, its imports and exports.
package frame

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"understudy.mesh/pkg/wasm/internal/host"
)

// maxName bounds a name within a module. Compilers write names of some hundred bytes at most.
const maxName = 64 << 10

// Info is what a module says of itself.
type Info struct {
	ABI     string // the version of proxy-wasm's interface, such as 0.2.1
	Imports int    // functions that it wants of its host
}

// Check reads the frame of a module of so many bytes: its header, the bounds and order of its sections, what it imports and what it
// exports. The error says in words what an Envoy would only call "Unable to create Wasm plugin"; the code itself is left to an
// Envoy. Of the rest only the heads of sections are read, and nothing is allocated by a size that the module states.
func Check(module io.ReaderAt, size int64) (Info, error) {
	p := parser{in: module, size: size}
	if err := p.header(); err != nil {
		return Info{}, err
	}
	for p.at < size {
		if err := p.section(); err != nil {
			return Info{}, err
		}
	}
	switch {
	case len(p.abi) == 0:
		return Info{}, Invalid("it exports no function proxy_abi_version_...: it is no proxy-wasm module, or one of a library for another host; want one of %s", host.ABIs())
	case len(p.abi) > 1:
		return Info{}, Invalid("it exports %s: want one version of the interface", strings.Join(p.abi, " and "))
	case !p.memory:
		return Info{}, Invalid(`it exports no memory, through which host and module exchange everything: export it as "memory" (the linker's --export-memory)`)
	}
	return Info{ABI: host.ABI(p.abi[0]), Imports: p.imports}, nil
}

// InvalidError says what is wrong with a module itself, as its author should read it.
type InvalidError struct{ reason string }

func (e *InvalidError) Error() string { return "not a module that Envoy runs: " + e.reason }

// Invalid makes an InvalidError of a reason.
func Invalid(format string, args ...any) error {
	return &InvalidError{fmt.Sprintf(format, args...)}
}

// parser reads a module through a window, front to back.
type parser struct {
	in     io.ReaderAt
	size   int64
	at     int64 // the next byte
	end    int64 // of the section that is read
	window [4096]byte
	begin  int64 // of what the window holds
	filled int

	last    int // the place of the last section in the order that the format prescribes
	imports int
	memory  bool
	abi     []string
}

// sectionNames are those of the format, by number.
var sectionNames = [...]string{"custom", "type", "import", "function", "table", "memory", "global", "export", "start", "element", "code", "data", "data count", "tag"}

// sectionOrder is where in a module a section has its place, by number: tags come after the memory, and the count of the data before the code.
var sectionOrder = [...]int{0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 11, 6}

func (p *parser) header() error {
	var head [8]byte
	n, err := p.in.ReadAt(head[:], 0)
	switch text := string(head[:n]); {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case n == 0:
		return Invalid("the file is empty")
	case strings.HasPrefix(text, "\x7fELF"):
		return Invalid("it is a program for this machine (ELF): compile for wasm32")
	case strings.HasPrefix(text, "\x1f\x8b"), strings.HasPrefix(text, "PK"), strings.HasPrefix(text, "\x28\xb5\x2f\xfd"):
		return Invalid("it is compressed: unpack it first")
	case strings.HasPrefix(strings.TrimSpace(text), "(module"):
		return Invalid("it is the text form: make the binary one with wat2wasm")
	case n < 8 || text[:4] != "\x00asm":
		return Invalid("it begins with %q, and a module with \"\\x00asm\"", text)
	case text[4:] == "\x0d\x00\x01\x00":
		return Invalid("it is a component of WASI 0.2, and Envoy runs core modules: compile for wasm32-wasip1 without a component")
	case text[4:] != "\x01\x00\x00\x00":
		return Invalid("it is of version %x of the binary format; want 01000000", text[4:])
	}
	p.at = 8
	return nil
}

func (p *parser) section() error {
	start := p.at
	p.end = p.size
	id, err := p.byte()
	if err != nil {
		return err
	}
	size, err := p.number()
	if err != nil {
		return err
	}
	if int(id) >= len(sectionNames) {
		return Invalid("at byte %d begins a section of the unknown kind %d", start, id)
	}
	name := sectionNames[id]
	if size > p.size-p.at {
		return Invalid("section %q at byte %d is to have %d bytes, of which %d are there: the file is cut off", name, start, size, p.size-p.at)
	}
	p.end = p.at + size
	if id != 0 {
		if sectionOrder[id] <= p.last {
			return Invalid("section %q at byte %d comes twice, or too late", name, start)
		}
		p.last = sectionOrder[id]
	}
	switch name {
	case "import":
		err = p.each(p.importEntry)
	case "export":
		err = p.each(p.exportEntry)
	default:
		p.at = p.end // of no interest here
	}
	if err == nil && p.at != p.end {
		err = Invalid("section %q at byte %d is longer than what is in it", name, start)
	}
	return err
}

// each reads the entries of a section, of which the first number says how many.
func (p *parser) each(entry func() error) error {
	count, err := p.number()
	for ; err == nil && count > 0; count-- {
		err = entry()
	}
	return err
}

// Kinds of what is imported and exported.
const (
	kindFunction = iota
	kindTable
	kindMemory
	kindGlobal
	kindTag
)

var kindNames = [...]string{"function", "table", "memory", "global", "tag"}

func (p *parser) importEntry() error {
	module, err := p.name()
	if err != nil {
		return err
	}
	name, err := p.name()
	if err != nil {
		return err
	}
	kind, err := p.byte()
	switch {
	case err != nil:
		return err
	case int(kind) >= len(kindNames):
		return Invalid("it imports %s.%s of the unknown kind %d", module, name, kind)
	case kind != kindFunction:
		return Invalid("it imports the %s %s.%s, and an Envoy gives functions only", kindNames[kind], module, name)
	case !slices.Contains(host.Functions(module), name):
		return Invalid("it imports the function %s.%s, which no Envoy has: %s", module, name, host.Remedy(module))
	}
	p.imports++
	_, err = p.number() // its type
	return err
}

func (p *parser) exportEntry() error {
	name, err := p.name()
	if err != nil {
		return err
	}
	kind, err := p.byte()
	if err != nil {
		return err
	}
	if _, err = p.number(); err != nil { // its index
		return err
	}
	switch {
	case kind == kindMemory:
		p.memory = true
	case kind == kindFunction && strings.HasPrefix(name, host.ABIPrefix):
		if host.ABI(name) == "" {
			return Invalid("it exports %s, a version of the interface that no Envoy has; want one of %s", name, host.ABIs())
		}
		p.abi = append(p.abi, name)
	}
	return nil
}

func (p *parser) name() (string, error) {
	start := p.at
	length, err := p.number()
	if err != nil {
		return "", err
	}
	if length > maxName || length > p.end-p.at {
		return "", Invalid("the name at byte %d is to have %d bytes, more than its section, or than anybody's", start, length)
	}
	text := make([]byte, length)
	if _, err := p.in.ReadAt(text, p.at); err != nil {
		return "", p.broken(err)
	}
	p.at += length
	if !utf8.Valid(text) {
		return "", Invalid("the name at byte %d is no UTF-8", start)
	}
	return string(text), nil
}

// number reads an unsigned LEB128 of 32 bits, the form of every number here.
func (p *parser) number() (int64, error) {
	start, n := p.at, int64(0)
	for shift := 0; shift < 35; shift += 7 {
		b, err := p.byte()
		if err != nil {
			return 0, err
		}
		n |= int64(b&0x7f) << shift
		if b < 0x80 && n < 1<<32 {
			return n, nil
		}
	}
	return 0, Invalid("the number at byte %d is beyond 32 bits", start)
}

func (p *parser) byte() (byte, error) {
	if p.at >= p.end {
		return 0, Invalid("it ends in the middle of an entry, at byte %d", p.at)
	}
	if i := p.at - p.begin; i < 0 || i >= int64(p.filled) {
		n, err := p.in.ReadAt(p.window[:], p.at)
		if n == 0 {
			return 0, p.broken(err)
		}
		p.begin, p.filled = p.at, n
	}
	b := p.window[p.at-p.begin]
	p.at++
	return b, nil
}

// broken is an error of the file, or the end of one that is shorter than was said.
func (p *parser) broken(err error) error {
	if errors.Is(err, io.EOF) {
		return Invalid("the file is cut off at byte %d", p.at)
	}
	return err
}
