package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// masked stands for the value of a secret.
const masked = "(masked)"

// Value is one setting as it is in force.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"`  // a secret is masked
	Source string `json:"source"` // "default", "derived", or where it was set
}

// Effective returns every setting that is in force with its source, in the order of
// Settings: what the agent logs at its start. Rows without effect are left out.
func (c *Config) Effective() []Value { return c.effective }

// Spelled is a setting that is in force as an error names it: its source, its name there
// and its value, such as "environment: PROXY_MARK=77". name is that of Settings.
func (c *Config) Spelled(name string) string {
	table := Settings()
	i := slices.IndexFunc(table, func(s Setting) bool { return s.name == name })
	for _, v := range c.effective {
		if v.Name == name {
			return fmt.Sprintf("%s: %s=%s", v.Source, spelled(table[i], v.Source), v.Value)
		}
	}
	return name
}

func (l *loader) effective() []Value {
	var out []Value
	for _, s := range l.table {
		r, ok := l.values[s.name]
		if !ok || s.Effect != Effective {
			continue
		}
		text := display(r.value)
		if s.secret && text != "" {
			text = masked
		}
		out = append(out, Value{Name: s.name, Value: text, Source: r.source})
	}
	return out
}

// display is a parsed value as one reads it back.
func display(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case time.Duration:
		return v.String()
	case []string, map[string]string:
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v)
}
