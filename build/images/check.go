package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"understudy.mesh/build/oci"
)

// machines are the architectures that images are for, as executables name them.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// check wants every executable of an image to be for its architecture, and to find there each library that it is linked
// with: a package may have been left out that it needs, and an Envoy of the user's may need others.
func check(description oci.Image) error {
	machine, known := machines[description.Architecture]
	if !known {
		return fmt.Errorf("architecture %q: want amd64 or arm64", description.Architecture)
	}
	present := make(map[string]bool)
	for _, l := range description.Layers {
		for _, f := range l.Files {
			present[path.Base(f.Path)] = true
		}
	}
	for _, l := range description.Layers {
		for _, f := range l.Files {
			if err := checkExecutable(f, machine, present); err != nil {
				return fmt.Errorf("%s (%s): %w", f.Path, l.Comment, err)
			}
		}
	}
	return nil
}

func checkExecutable(f oci.File, machine elf.Machine, present map[string]bool) error {
	if f.Mode.Type() != 0 {
		return nil
	}
	var content io.ReaderAt = bytes.NewReader(f.Content)
	if f.Source != "" {
		opened, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer opened.Close()
		content = opened
	}
	executable, err := elf.NewFile(content)
	var format *elf.FormatError
	switch {
	case f.Source == "" && (errors.As(err, &format) || errors.Is(err, io.EOF)):
		return nil // a file of a package that is no executable
	case err != nil:
		return fmt.Errorf("%s: want an executable: %w", f.Source, err)
	case executable.Machine != machine:
		return fmt.Errorf("it is for %v, want %v", executable.Machine, machine)
	}
	libraries, err := executable.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, library := range libraries {
		if !present[library] {
			return fmt.Errorf("it is linked with %s, which is not in the image", library)
		}
	}
	return nil
}
