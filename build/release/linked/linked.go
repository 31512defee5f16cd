// Package linked owns what a Go binary says of itself: the toolchain and the modules that it was linked from. It
// reads the binary, not go.mod: a module that is only required is not in what is shipped.
package linked

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Module is a module of which a binary has packages.
type Module struct {
	Path, Version string
	// Sum is its line of go.sum: "h1:" and the hash of its files.
	Sum string
}

// Binary is a Go binary and what it is made of.
type Binary struct {
	// Name is what it is called where it was found, such as usr/local/bin/pilot-agent.
	Name string
	// Main is the import path of its package main.
	Main string
	// Go is the toolchain that made it, such as go1.26.8; the standard library is that one's.
	Go string
	// OS, Arch and Tags are what it was built for, and with.
	OS, Arch, Tags string
	// SHA256 is of the file, in hexadecimal digits.
	SHA256  string
	Modules []Module
}

// ErrNotGo is what Read fails with for a file that no Go toolchain has linked.
var ErrNotGo = errors.New("not a Go binary, or one without build information")

// Read reads a binary of size bytes.
func Read(name string, r io.ReaderAt, size int64) (Binary, error) {
	info, err := buildinfo.Read(r)
	if err != nil {
		return Binary{}, fmt.Errorf("read %s: %w: %w", name, ErrNotGo, err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, size)); err != nil {
		return Binary{}, fmt.Errorf("read %s: %w", name, err)
	}
	b := Binary{Name: name, Main: info.Path, Go: info.GoVersion, SHA256: hex.EncodeToString(sum.Sum(nil))}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "GOOS":
			b.OS = setting.Value
		case "GOARCH":
			b.Arch = setting.Value
		case "-tags":
			b.Tags = setting.Value
		}
	}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		// A replacement by a directory has no sum: nobody else could tell what was in it.
		if module.Sum == "" {
			return Binary{}, fmt.Errorf("read %s: module %s %s has no sum: it was replaced by a directory; build from published modules", name, module.Path, module.Version)
		}
		b.Modules = append(b.Modules, Module{Path: module.Path, Version: module.Version, Sum: module.Sum})
	}
	return b, nil
}

// ReadFile reads the binary at a path, and names it by its base name.
func ReadFile(path string) (Binary, error) {
	file, err := os.Open(path)
	if err != nil {
		return Binary{}, fmt.Errorf("read what a binary was linked from: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return Binary{}, fmt.Errorf("read what a binary was linked from: %w", err)
	}
	return Read(filepath.Base(path), file, info.Size())
}
