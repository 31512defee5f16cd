package wasmcmd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/wasmplugin"
)

const explainHelp = `Shows what the agent makes of the documents that ask for Wasm modules: of a WasmPlugin the filter as Envoy gets it, in which
MODULE stands for the module's place in the store, and of an ASMFilterDeployment the EnvoyFilter that it becomes. NAME is that of a document, or NAMESPACE/NAME; without one, all are shown.
The documents are those of the agent's directory (UNDERSTUDY_CONFIG_DIR), or of --filename.`

// modulePlaceholder stands for the file of a module, which is only known once it is had.
const modulePlaceholder = "MODULE"

func newExplainCommand(e *cli.Env, load Load) *cobra.Command {
	var filename string
	cmd := &cobra.Command{
		Use:   "explain [NAME]",
		Short: "Show the filter that is made of a document",
		Long:  explainHelp,
		Args:  cobra.MaximumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, _, err := load(e, cmd, config.Sidecar)
		if err != nil {
			return err
		}
		if filename == "" {
			filename = cfg.ConfigDir
		}
		if filename == "" {
			return &cli.UsageError{Err: errors.New("give the documents: --filename, a file or a directory")}
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		return explain(e, filename, cfg.PodNamespace, name)
	}
	cli.AddSettings(cmd.Flags(), false)
	cmd.Flags().StringVarP(&filename, "filename", "f", "", "file or directory with the documents, instead of the agent's")
	return cmd
}

func explain(e *cli.Env, filename, namespace, name string) error {
	files, err := documents(filename)
	if err != nil {
		return fmt.Errorf("flag --filename: %w", err)
	}
	var found []string
	var errs []error
	for _, file := range files {
		texts, err := explainFile(file, namespace, name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		found = append(found, texts...)
	}
	fmt.Fprint(e.Stdout, strings.Join(found, "---\n"))
	if len(found) == 0 && len(errs) == 0 {
		return fmt.Errorf("%s: there is no document that asks for a module%s", filename, called(name))
	}
	return errors.Join(errs...)
}

func called(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" with the name %q", name)
}

func explainFile(file, namespace, name string) ([]string, error) {
	data, err := readFile(file, maxPluginFile)
	if err != nil {
		return nil, err
	}
	var texts []string
	var errs []error
	add := func(kind, ofNamespace, called string, value any, err error) {
		var text []byte
		if err == nil {
			text, err = yaml.Marshal(value)
		}
		errs = append(errs, err)
		texts = append(texts, fmt.Sprintf("# %s %s/%s\n%s", kind, ofNamespace, called, text))
	}
	wanted := func(ofNamespace, called string) bool {
		return name == "" || name == called || name == ofNamespace+"/"+called
	}
	plugins, err := wasmplugin.Read(data, namespace)
	errs = append(errs, err)
	for _, p := range plugins {
		if wanted(p.Namespace, p.Name) {
			x, err := p.Explain(modulePlaceholder)
			add(wasmplugin.Kind, p.Namespace, p.Name, x, err)
		}
	}
	deployments, err := mesh.ReadDeployments(data, namespace)
	errs = append(errs, err)
	for _, d := range deployments {
		if wanted(d.Namespace, d.Name) {
			add(asmfilter.Kind, d.Namespace, d.Name, d.Manifest(), nil)
		}
	}
	return texts, errors.Join(errs...)
}

// documents are the files that hold them, of a directory as the agent reads it.
func documents(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		if name := entry.Name(); !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			files = append(files, filepath.Join(path, name))
		}
	}
	return files, nil
}
