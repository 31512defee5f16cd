package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"understudy.mesh/build/release/license"
	"understudy.mesh/build/release/linked"
)

// standardLibrary is what Go's own packages are called among the modules; their version is the toolchain's.
const standardLibrary = "std"

// noticeHead is what NOTICE begins with: whose the product is, and what its images have besides Go modules.
const noticeHead = `Understudy
Copyright The Understudy Authors

Licensed under the Apache License, Version 2.0; see LICENSE.

The proxy image contains Envoy (https://www.envoyproxy.io), Copyright The Envoy Project Authors, unchanged, under the
Apache License, Version 2.0, with the libraries that its own release is linked from.

The images contain packages of Debian, unchanged. The licence of each is in /usr/share/doc/PACKAGE/copyright of the
image; Debian has the source of each version. The bill of materials of each image lists them all.
`

// found are all modules with their licences, by "PATH@VERSION".
type found map[string]license.Module

// findLicenses reads those of all modules of binaries that are packages of the module at root.
func findLicenses(ctx context.Context, root string, binaries []linked.Binary) (found, error) {
	all := found{}
	for _, b := range binaries {
		listed, err := listModules(ctx, root, b)
		if err != nil {
			return nil, err
		}
		standard, err := standardModule(ctx, root, b.Go)
		if err != nil {
			return nil, err
		}
		all[key(standard.Module)] = standard
		for _, m := range b.Modules {
			if _, known := all[key(m)]; known {
				continue
			}
			from, ok := listed[m.Path]
			if !ok || from.version != m.Version {
				return nil, fmt.Errorf("licences of %s: it has module %s %s, go list in %s has %q: build it from this tree", b.Name, m.Path, m.Version, root, from.version)
			}
			if all[key(m)], err = license.Find(m, from.dir, from.packages); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func key(m linked.Module) string { return m.Path + "@" + m.Version }

// standardModule is the licence of Go's own packages, which every binary has.
func standardModule(ctx context.Context, root, version string) (license.Module, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return license.Module{}, fmt.Errorf("go env GOROOT: %w%s", err, said(err))
	}
	return license.Find(linked.Module{Path: standardLibrary, Version: version}, strings.TrimSpace(string(out)), nil)
}

// module is where the module cache has a module, and which of its packages are linked, by their paths within it.
type module struct {
	version, dir string
	packages     []string
}

// goPackage is what we read of `go list -json`.
type goPackage struct {
	ImportPath string
	Module     *goModule
}

type goModule struct {
	Path, Version, Dir string
	Replace            *goModule
}

// listModules are the modules of which go would link packages into a binary, by path.
func listModules(ctx context.Context, root string, b linked.Binary) (map[string]module, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-tags", b.Tags, "-json=ImportPath,Module", b.Main)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS="+b.OS, "GOARCH="+b.Arch, "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("licences of %s: go list: %w%s", b.Name, err, said(err))
	}
	modules := map[string]module{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return modules, nil
		} else if err != nil {
			return nil, fmt.Errorf("licences of %s: go list: %w", b.Name, err)
		}
		if p.Module == nil {
			continue
		}
		inner := strings.Trim(strings.TrimPrefix(p.ImportPath, p.Module.Path), "/")
		from := p.Module
		if from.Replace != nil {
			from = from.Replace
		}
		m := modules[from.Path]
		modules[from.Path] = module{version: from.Version, dir: from.Dir, packages: append(m.packages, cmp.Or(inner, "."))}
	}
}

// makePapers writes doc/: what the images have in /usr/share/doc/understudy, too.
func (r *release) makePapers(ctx context.Context) error {
	r.say("licences")
	binaries, err := r.binaries()
	if err != nil {
		return err
	}
	licenses, err := findLicenses(ctx, r.root, binaries)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return fmt.Errorf("read our own licence: %w", err)
	}
	r.licenses = licenses
	return license.Write(filepath.Join(r.stage, "doc"), license.Product{License: text, Notice: noticeHead}, slices.Collect(maps.Values(licenses)))
}

// binaries reads those that were made, named ARCH/NAME.
func (r *release) binaries() ([]linked.Binary, error) {
	paths, err := filepath.Glob(filepath.Join(r.stage, "linux-*", "*"))
	if err != nil || len(paths) == 0 {
		return nil, fmt.Errorf("no binaries in %s: %w", r.stage, err)
	}
	var all []linked.Binary
	for _, path := range paths {
		b, err := linked.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}
