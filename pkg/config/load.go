package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// Load reads every source and returns the effective configuration. Precedence, from
// low to high: default, mesh file, PROXY_CONFIG, annotations, proxyMetadata,
// environment, flag. The error joins every problem that was found, one line each;
// the Config is nil then. Warnings are returned in either case.
func Load(src Sources) (*Config, []Warning, error) {
	l := newLoader(src)
	l.defaults()
	l.meshFile()
	l.proxyConfig(sourceProxyConfig, l.env[sourceProxyConfig])
	l.podAnnotations()
	l.proxyMetadata()
	l.environment()
	l.flags()
	cfg := l.assign()
	l.derive(cfg)
	l.check(cfg)
	if cfg.ConfigDir != "" {
		l.warnings = append(l.warnings, l.unacted...)
	}
	if len(l.problems) > 0 {
		return nil, l.warnings, errors.Join(l.problems...)
	}
	cfg.effective = l.effective(cfg.ConfigDir == "")
	return cfg, l.warnings, nil
}

// assign fills the fields that table rows name.
func (l *loader) assign() *Config {
	cfg := &Config{Role: l.src.Role}
	target := reflect.ValueOf(cfg).Elem()
	for _, s := range l.table {
		if r, ok := l.values[s.name]; ok && s.field != "" {
			target.FieldByName(s.field).Set(reflect.ValueOf(r.value))
		}
	}
	return cfg
}

// Spelled is a setting that is in force as an error names it: its source, its name there
// and its value, such as "environment: PROXY_MARK=77". name is that of Settings.
func (c *Config) Spelled(name string) string {
	table := Settings()
	i := slices.IndexFunc(table, func(s Setting) bool { return s.name == name })
	for _, v := range c.effective {
		if v.Name == name {
			return fmt.Sprintf("%s: %s=%s", v.Source, table[i].in(v.Source), v.Value)
		}
	}
	return name
}

func (l *loader) effective(istiod bool) []Value {
	var out []Value
	for _, s := range l.table {
		r, ok := l.values[s.name]
		if !ok || s.Effect > UnderIstiod || s.Effect == UnderIstiod && !istiod {
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
		if v < 0 { // only of RootsLife
			return "leaf"
		}
		return v.String()
	case []string, map[string]string:
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v)
}
