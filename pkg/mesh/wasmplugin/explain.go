package wasmplugin

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"

	"understudy.mesh/pkg/wasm/wasmfilter"
)

// Explained is what becomes of a plugin, for people.
type Explained struct {
	Filter  string          `json:"filter"` // its name
	Module  string          `json:"module"`
	Without string          `json:"withoutModule"` // what traffic does then
	Poll    string          `json:"poll,omitempty"`
	Config  json.RawMessage `json:"config"` // of the filter, as Envoy gets it
}

// Explain says what becomes of the plugin; path stands for where the module will be.
func (p *Plugin) Explain(path string) (Explained, error) {
	f, err := wasmfilter.Of(p.config)
	if err != nil {
		return Explained{}, err
	}
	e := Explained{Filter: p.filter().FilterName, Module: f.Source.URL, Without: "is refused"}
	if f.Open {
		e.Without = "passes"
	}
	if f.Poll > 0 {
		e.Poll = f.Poll.String()
	}
	config, err := f.With(path)
	if err != nil {
		return e, err
	}
	e.Config, err = protojson.Marshal(config)
	return e, err
}
