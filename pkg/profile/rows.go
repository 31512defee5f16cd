package profile

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Row is one setting for people to read.
type Row struct {
	Field  string `json:"field"`
	Value  any    `json:"value"` // null: not set, and there is no default
	Source string `json:"source"`
}

// Rows are all settings, in the order of the type; what is merged key by key has its own row for each key.
func (s *Settings) Rows() []Row {
	var rows []Row
	s.rows(reflect.ValueOf(&s.Spec).Elem(), "", &rows)
	return rows
}

func (s *Settings) rows(v reflect.Value, path string, rows *[]Row) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		at, field := strings.TrimPrefix(path+"."+name, "."), v.Field(i)
		switch {
		case isOurs(field.Type()):
			s.rows(field.Elem(), at, rows)
		case at == configPath:
			var config map[string]any
			if json.Unmarshal([]byte(*s.Proxy.Config), &config) == nil {
				s.keys(at, config, rows)
			}
		case at == envPath:
			env := map[string]any{}
			for name, value := range s.Proxy.Env {
				env[name] = value
			}
			s.keys(at, env, rows)
		case field.IsNil():
			*rows = append(*rows, Row{at, nil, s.sources[at]})
		default:
			*rows = append(*rows, Row{at, field.Interface(), s.sources[at]})
		}
	}
}

// keys adds the members of a map that has a source for each. One without is a typed field's.
func (s *Settings) keys(path string, members map[string]any, rows *[]Row) {
	var own []Row
	for key, value := range members {
		if source := s.sources[path+"."+key]; source != "" {
			own = append(own, Row{path + "." + key, value, source})
		}
	}
	slices.SortFunc(own, func(a, b Row) int { return strings.Compare(a.Field, b.Field) })
	*rows = append(*rows, own...)
}

const configPath = "proxy.config"
