package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"understudy.mesh/pkg/config"
)

// settingFlag is a flag of the settings table. It keeps its text: config.Load parses
// it, together with every other source, so that all errors come at once.
type settingFlag struct {
	text string
	kind config.Kind
}

func (f *settingFlag) String() string { return f.text }

func (f *settingFlag) Set(text string) error {
	f.text = text
	return nil
}

// Type is the placeholder that --help shows.
func (f *settingFlag) Type() string { return f.kind.String() }

// AddSettings registers the flags of the settings table: the global ones, which every
// command takes, or those of `proxy`.
func AddSettings(fs *pflag.FlagSet, global bool) {
	for _, s := range config.Settings() {
		if s.Flag == "" || s.Global != global {
			continue
		}
		doc := s.Doc
		switch s.Effect {
		case config.Effective:
		case config.UnderIstiod:
			doc += " (without effect with --configDir)"
		default:
			doc += " (accepted without effect)"
		}
		if s.Env != "" {
			doc += " [$" + s.Env + "]"
		}
		flag := fs.VarPF(&settingFlag{text: s.Default, kind: s.Kind}, s.Flag, "", doc)
		if s.Kind == config.Bool {
			flag.NoOptDefVal = "true"
		}
	}
}

// GivenSettings returns the settings that the command line gives, for config.Sources.
func GivenSettings(cmd *cobra.Command) map[string]string {
	given := map[string]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if s, ok := f.Value.(*settingFlag); ok {
			given[f.Name] = s.text
		}
	})
	return given
}
