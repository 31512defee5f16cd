package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/sidecar-injector/internal/carry"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

func newImportCommand(stdin io.Reader) *cobra.Command {
	var files []string
	var root string
	cmd := &cobra.Command{
		Use:   "import -f FILE",
		Short: "Print the settings of Istio's injector as SidecarProfiles",
		Long: `Reads the ConfigMaps istio and istio-sidecar-injector and ProxyConfig objects from files and prints SidecarProfiles that say
the same. What cannot be carried is listed on stderr, and the exit status is 1. It changes nothing.

  kubectl get configmaps,proxyconfigs.networking.istio.io -A -o yaml | sidecar-injector import -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errors.New("flag -f: give a file, or - for stdin")
			}
			return runtimeError(importIstio(files, root, stdin, cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&files, "filename", "f", nil, "file of Istio's objects; - is stdin; may be given several times")
	f.StringVar(&root, "root-namespace", "istio-system", "Istio's root namespace, whose ProxyConfig is the mesh's")
	return cmd
}

func importIstio(files []string, root string, stdin io.Reader, out io.Writer) error {
	outcome := carry.New(root)
	for _, file := range files {
		if err := offline.EachObject(file, stdin, outcome.Add); err != nil {
			return err
		}
	}
	if outcome.Found() == 0 {
		return errors.New("none of the files has a ConfigMap istio or istio-sidecar-injector, or a ProxyConfig")
	}
	text, lost, err := outcome.Profiles(offline.InjectorNamespace)
	if err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	if len(lost) > 0 {
		return fmt.Errorf("not carried:\n  %s", strings.Join(lost, "\n  "))
	}
	return nil
}
