package config

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPlatform: a cloud is asked when a variable names it, and its locality counts where no label has one.
func TestPlatform(t *testing.T) {
	labels := map[string]string{labelsFile: `topology.istio.io/locality="r.z"`}
	for name, tc := range map[string]struct {
		env     []string
		flags   map[string]string
		files   map[string]string
		asked   string
		region  string
		warning bool
	}{
		"none named":         {},
		"none":               {env: []string{"CLOUD_PLATFORM=none"}},
		"named":              {env: []string{"CLOUD_PLATFORM=AWS"}, asked: "aws", region: "here"},
		"a label has it":     {env: []string{"CLOUD_PLATFORM=aws"}, files: labels, asked: "aws", region: "r"},
		"it is not there":    {env: []string{"CLOUD_PLATFORM=azure"}, asked: "azure", warning: true},
		"the variable knows": {env: []string{"GCP_METADATA=p|1|c|l", "GCP_ZONE=z"}, asked: "gcp p|1|c|l z", region: "here"},
		"on files":           {env: []string{"CLOUD_PLATFORM=aws"}, flags: map[string]string{"configDir": "x"}, warning: true},
	} {
		t.Run(name, func(t *testing.T) {
			var asked string
			cfg, warnings := mustLoad(t, Sources{
				Environ: append(tc.env, "ISTIO_META_ISTIO_VERSION=1.32.0"), Flags: tc.flags, ReadFile: files(tc.files),
				Platform: func(name string, _ bool, static map[string]string) (Platform, error) {
					asked = name
					if len(static) > 0 {
						asked += " " + static["GCP_METADATA"] + " " + static["GCP_ZONE"]
					}
					if name == "azure" {
						return Platform{}, errors.New("nobody answers")
					}
					return Platform{Region: "here", Zone: "there", Metadata: map[string]string{"a": "b"}}, nil
				},
			})
			if asked != tc.asked || cfg.Node.Region != tc.region || len(warnings) > 0 != tc.warning {
				t.Errorf("asked %q, region %q, warnings %v", asked, cfg.Node.Region, warnings)
			}
			if tc.region == "here" {
				if diff := cmp.Diff(map[string]any{"a": "b"}, cfg.Node.Metadata["PLATFORM_METADATA"]); diff != "" {
					t.Errorf("PLATFORM_METADATA (-want +got):\n%s", diff)
				}
			}
		})
	}
}
