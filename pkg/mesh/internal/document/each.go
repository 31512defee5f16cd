package document

import (
	"errors"
	"fmt"
)

// Metadata is what documents say of themselves.
type Metadata struct {
	Namespace, Name string
	Annotations     map[any]any // as they are written
}

// Each reads the documents of a kind, of a file of YAML or JSON; those of other kinds are passed over. One without a namespace is of
// the namespace that is given. read makes something of a document, of which all but the spec was read. The error names each document
// that is bad, its field and the reason.
func Each(data []byte, kind, apiVersion, namespace string, read func(r *Reader, m Metadata, spec any) *Error) error {
	var errs []error
	reader := NewReader()
	chunks := Split(data)
	stream := NewStream(chunks)
	for i, c := range chunks {
		tree, err := stream.Next(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", i+1, err))
			continue
		}
		fields, _ := tree.(map[any]any)
		if fields["kind"] != kind {
			continue
		}
		reader.Begin(c.Text)
		m := Metadata{Namespace: namespace}
		ferr := m.read(reader, fields, apiVersion)
		if ferr == nil {
			ferr = read(reader, m, fields["spec"])
		}
		if ferr != nil {
			errs = append(errs, fmt.Errorf("document %d, %s %q: %w", i+1, kind, Abridge(m.Name), ferr))
		}
	}
	return errors.Join(errs...)
}

func (m *Metadata) read(r *Reader, fields map[any]any, apiVersion string) (ferr *Error) {
	meta, ok := fields["metadata"].(map[any]any)
	if !ok {
		return Errorf("metadata", "should be an object with a name")
	}
	if v := meta["name"]; v != nil {
		if m.Name, ferr = r.Text(v); ferr != nil {
			return ferr.In("metadata.name")
		}
	}
	if v := meta["namespace"]; v != nil {
		if m.Namespace, ferr = r.Text(v); ferr != nil {
			return ferr.In("metadata.namespace")
		}
	}
	m.Annotations, _ = meta["annotations"].(map[any]any)
	for _, name := range KeyNames(fields) {
		switch name {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			return Errorf(name, "unknown field; known are apiVersion, kind, metadata, spec, status")
		}
	}
	switch {
	case fields["apiVersion"] != apiVersion:
		return Errorf("apiVersion", "is %q, should be %s", Abridge(fmt.Sprint(fields["apiVersion"])), apiVersion)
	case m.Name == "":
		return Errorf("metadata.name", "is missing")
	}
	return nil
}

// Annotation is one of a document, "" without it.
func (r *Reader) Annotation(annotations map[any]any, name string) (text string, ferr *Error) {
	if v := annotations[name]; v != nil {
		text, ferr = r.Text(v)
	}
	return text, ferr.In("metadata.annotations[" + name + "]")
}

// JSON has the maps of a tree as JSON has them, and charges all text to the document, which may repeat it by aliases. A number stays
// what it is.
func (r *Reader) JSON(tree any) (any, *Error) {
	switch tree := tree.(type) {
	case map[any]any:
		out := make(map[string]any, len(tree))
		for k, v := range tree {
			name, ferr := r.Text(keyName(k))
			if ferr != nil {
				return nil, ferr
			}
			if _, twice := out[name]; twice {
				return nil, Errorf("."+Abridge(name), "is there twice, as a string and as a number or a truth value")
			}
			if out[name], ferr = r.JSON(v); ferr != nil {
				return nil, ferr.In("." + Abridge(name))
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(tree))
		for i, v := range tree {
			var ferr *Error
			if out[i], ferr = r.JSON(v); ferr != nil {
				return nil, ferr.In(fmt.Sprintf("[%d]", i))
			}
		}
		return out, nil
	case string:
		text, ferr := r.Text(tree)
		return text, ferr
	}
	return tree, nil
}
