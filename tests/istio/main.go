// Command istio writes what Istio's own agent would start Envoy with: for each case of a directory
// (NAME.yaml) the bootstrap, its node included, as NAME.istio.json. Istio's packages do the work; see
// CONTRIBUTING.md for when to run it.
//
//	go run -tags vtprotobuf,disable_pgv . DIR
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// sample is one agent: what it finds when it starts.
type sample struct {
	Role        string            `json:"role"`
	Addresses   []string          `json:"addresses"` // of the pod's interfaces
	Files       map[string]string `json:"files"`     // below the working directory
	Environment map[string]string `json:"environment"`
	LogAsJSON   bool              `json:"logAsJSON"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run writes the files of a directory, or, as its own child, of one case.
func run(args []string) error {
	switch len(args) {
	case 1:
		return writeAll(args[0])
	case 4: // "case", the case, the template, the output
		return writeBootstrap(args[1], args[2], args[3])
	}
	return errors.New("want one argument: the directory of the cases")
}

func writeAll(dir string) error {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		return fmt.Errorf("find Istio's module: %w", err)
	}
	template := filepath.Join(strings.TrimSpace(string(module)), "tools/packaging/common/envoy_bootstrap.json")
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("no cases (*.yaml) in %s: %v", dir, err)
	}
	for _, path := range paths {
		if err := writeOne(path, template); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// writeOne runs the case in a process of its own, since Istio reads the environment before main.
func writeOne(path, template string) error {
	s, err := readSample(path)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "istio-bootstrap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for name, text := range s.Files {
		name = filepath.Join(scratch, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return err
	}
	output := strings.TrimSuffix(path, ".yaml") + ".istio.json"
	child := exec.Command("/proc/self/exe", "case", path, template, output)
	child.Dir = scratch
	child.Env = []string{"CLOUD_PLATFORM=none"}
	for key, value := range s.Environment {
		child.Env = append(child.Env, key+"="+value)
	}
	if out, err := child.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func readSample(path string) (*sample, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &sample{Role: "sidecar"}
	return s, yaml.UnmarshalStrict(data, s)
}

// indented is JSON with its keys in order, so that the files can be compared.
func indented(data []byte) ([]byte, error) {
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, fmt.Errorf("read the bootstrap: %w", err)
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(tree)
	return out.Bytes(), err
}
