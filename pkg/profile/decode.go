package profile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxBytes bounds a profile as text: the API server's bound of an object is not much more.
const maxBytes = 1 << 20

// YAMLError is what sigs.k8s.io/yaml says of a text, on one line and without what it says of itself.
func YAMLError(err error) error {
	message := strings.Join(strings.Fields(err.Error()), " ")
	for _, prefix := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors: "} {
		message = strings.TrimPrefix(message, prefix)
	}
	return errors.New("want YAML: " + message)
}

// Decode reads one SidecarProfile in YAML, strictly: an unknown field and a key that is there twice are errors. It does not
// say whether the values are right: [SidecarProfile.Validate] does.
func Decode(data []byte) (*SidecarProfile, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), maxBytes)
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, YAMLError(err)
	}
	if bytes.Equal(text, []byte("null")) {
		return nil, errors.New("want a " + Kind + ", not an empty document")
	}
	var p SidecarProfile
	strict, err := kjson.UnmarshalStrict(text, &p)
	if err != nil {
		return nil, fmt.Errorf("want a %s: %w", Kind, err)
	}
	if p.APIVersion != Group+"/"+Version || p.Kind != Kind {
		return nil, fmt.Errorf("apiVersion %q, kind %q: want %s/%s and %s", p.APIVersion, p.Kind, Group, Version, Kind)
	}
	if len(strict) > 0 {
		return nil, errors.Join(strict...)
	}
	return &p, nil
}
