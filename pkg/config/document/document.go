// Package document reads the documents in which settings come: YAML, JSON, and the files of the downward API. It checks them
// against the messages of Istio's API.
package document

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v2"
)

// MaxBytes bounds a document, PROXY_CONFIG, the mesh file and each file of the downward API:
// Kubernetes itself allows annotations 256 KiB and a ConfigMap 1 MiB.
const MaxBytes = 1 << 20

// ErrNotText is for bytes that are no text: protobuf, and so Envoy's configuration,
// holds nothing else.
var ErrNotText = errors.New("want UTF-8 text")

// maxExpanded bounds what a document's aliases may expand to, in bytes of keys and
// scalars: the parser bounds how many nodes they make, not how long each one is.
const maxExpanded = 8 << 20

// Parse reads one YAML or JSON document of at most MaxBytes whose top is a map. An empty document
// is an empty map. Its values are those of encoding/json.
func Parse(data []byte) (map[string]any, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), MaxBytes)
	}
	var raw any
	if err := yaml.UnmarshalStrict(data, &raw); err != nil {
		return nil, fmt.Errorf("want YAML or JSON: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	if raw == nil {
		return map[string]any{}, nil
	}
	budget := maxExpanded
	tree, err := jsonable(raw, &budget)
	if err != nil {
		return nil, err
	}
	top, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("want a map of settings, not %T", raw)
	}
	return top, nil
}

// jsonable turns what the YAML parser returns into what encoding/json takes, and
// charges every key and scalar to the budget.
func jsonable(v any, budget *int) (any, error) {
	const perNode = 16 // a nested list of empty nodes is not free either
	*budget -= perNode
	if s, ok := v.(string); ok {
		*budget -= len(s)
		if !utf8.ValidString(s) { // YAML's !!binary
			return nil, ErrNotText
		}
	}
	if *budget < 0 {
		return nil, fmt.Errorf("aliases expand to more than %d bytes", maxExpanded)
	}
	switch v := v.(type) {
	case map[any]any:
		out := make(map[string]any, len(v))
		for key, member := range v {
			name, err := keyName(key)
			if err != nil {
				return nil, err
			}
			*budget -= len(name)
			if out[name], err = jsonable(member, budget); err != nil {
				return nil, err
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, member := range v {
			var err error
			if out[i], err = jsonable(member, budget); err != nil {
				return nil, err
			}
		}
		return out, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is not a number that JSON knows", v)
		}
		return v, nil
	case nil, string, bool, int, int64, uint64:
		return v, nil
	}
	return fmt.Sprint(v), nil // a date, which JSON spells as a string
}

// keyName is a map key as JSON would spell it.
func keyName(key any) (string, error) {
	switch key := key.(type) {
	case string:
		if !utf8.ValidString(key) {
			return "", ErrNotText
		}
		return key, nil
	case int, bool:
		return fmt.Sprint(key), nil
	}
	return "", fmt.Errorf("want plain names as keys, not %T", key)
}

// Text is a JSON value as text: a string as it is, anything
// else as JSON.
func Text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v) // unreachable: Parse admits only what JSON knows
	}
	return string(b)
}

// Lookup finds what is at a path, of at least one element, in a tree that Parse has made.
func Lookup(tree map[string]any, path []string) (any, bool) {
	v, ok := tree[path[0]]
	if len(path) == 1 {
		return v, ok
	}
	sub, _ := v.(map[string]any)
	return Lookup(sub, path[1:])
}

// ParseDownward reads a file of at most MaxBytes of the downward API: lines of key="quoted value"
// (Kubernetes: "Expose Pod Information to Containers Through Files").
func ParseDownward(data []byte) (map[string]string, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), MaxBytes)
	}
	entries := map[string]string{}
	for i, line := range strings.Split(string(data), "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, quoted, found := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !found || key == "" || err != nil || !utf8.ValidString(key+value) {
			return nil, fmt.Errorf(`line %d: want key="quoted value"`, i+1)
		}
		entries[key] = value
	}
	return entries, nil
}
