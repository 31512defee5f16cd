package mesh

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"regexp"
	"strconv"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"
)

// The kinds that make resources, and the groups that classify the others.
const (
	kindServiceEntry  = "ServiceEntry"
	kindWorkloadEntry = "WorkloadEntry"
	groupNetworking   = "networking.istio.io"
	groupSecurity     = "security.istio.io"
)

// decoded is what one document, or one item of a List, turned out to be.
type decoded struct {
	sum                   uint64 // of the bytes it came from
	kind, namespace, name string
	obj                   *object // nil unless status is StatusOK
	status                Status
	err                   *fieldError // why it is not StatusOK
	forbidden             bool        // restricts access, which must never be ignored
}

// decoder turns documents into objects. It is not safe for concurrent use.
type decoder struct {
	namespace    string
	allowIgnored bool
	seed         maphash.Seed
	names        map[string]string // interned port names, namespaces, labels
}

func newDecoder(o Options) *decoder {
	return &decoder{
		namespace: o.Namespace, allowIgnored: o.AllowIgnored, seed: maphash.MakeSeed(), names: map[string]string{},
	}
}

// sum is the hash by which a document is known again.
func (d *decoder) sum(text []byte) uint64 { return maphash.Bytes(d.seed, text) }

// document decodes one document: to one result, or one for each item of a List. known gives the result of an item
// that was decoded before, by its sum.
func (d *decoder) document(c chunk, known func(sum uint64) (decoded, bool)) []decoded {
	sum := d.sum(c.text)
	text, err := toJSON(c)
	if err != nil {
		return []decoded{{sum: sum, status: StatusError, err: &fieldError{"", err.Error()}}}
	}
	env, ferr := parseEnvelope(text)
	if ferr != nil || env.items == nil || !strings.HasSuffix(env.kind, "List") {
		return []decoded{d.value(env, ferr, sum)}
	}
	out := make([]decoded, 0, len(env.items))
	for _, item := range env.items {
		itemSum := d.sum(item)
		one, ok := known(itemSum)
		if !ok {
			env, ferr := parseEnvelope(item)
			one = d.value(env, ferr, itemSum)
		}
		out = append(out, one)
	}
	return out
}

// value makes the object of an envelope; ferr is what was wrong with the envelope itself.
func (d *decoder) value(env envelope, ferr *fieldError, sum uint64) decoded {
	dec := decoded{sum: sum, kind: d.intern(env.kind), namespace: d.intern(env.namespace), name: env.name}
	if dec.namespace == "" {
		dec.namespace = d.namespace
	}
	if ferr == nil {
		ferr = d.object(&dec, env)
	}
	if ferr != nil {
		dec.status, dec.err, dec.obj = StatusError, ferr, nil
	}
	return dec
}

// object classifies the document by its kind and fills in dec.
func (d *decoder) object(dec *decoded, env envelope) *fieldError {
	group, version, _ := strings.Cut(env.apiVersion, "/")
	switch {
	case restrictsAccess(group, env.kind):
		if !d.allowIgnored {
			dec.forbidden = true
			return &fieldError{"kind", env.kind + " restricts access, and nothing here enforces it; remove it, or pass --allowIgnored to run without it"}
		}
		dec.status, dec.err = StatusIgnored, &fieldError{"kind", env.kind + " is not enforced (--allowIgnored)"}
		return nil
	case env.kind != kindServiceEntry && env.kind != kindWorkloadEntry:
		dec.status, dec.err = StatusIgnored, &fieldError{"kind", fmt.Sprintf("%q is not used here", abridge(env.kind))}
		return nil
	case group != groupNetworking || !knownVersion(version):
		return &fieldError{"apiVersion", fmt.Sprintf("is %q, should be one of %s/{v1,v1beta1,v1alpha3}", abridge(env.apiVersion), groupNetworking)}
	case env.name == "":
		return &fieldError{"metadata.name", "is missing"}
	case env.spec == nil:
		return &fieldError{"spec", "is missing"}
	}
	o := &object{kind: dec.kind, namespace: dec.namespace, name: dec.name, created: env.created, sum: dec.sum}
	if ferr := d.spec(o, env.spec); ferr != nil {
		return ferr
	}
	dec.obj, dec.status = o, StatusOK
	return nil
}

func (d *decoder) spec(o *object, spec json.RawMessage) (ferr *fieldError) {
	if o.kind == kindServiceEntry {
		var m networking.ServiceEntry
		if ferr = decodeSpec(spec, &m); ferr == nil {
			o.entry, ferr = d.newEntry(&m)
		}
		return ferr
	}
	var m networking.WorkloadEntry
	if ferr = decodeSpec(spec, &m); ferr == nil {
		o.workload, ferr = d.newWorkload(&m)
	}
	return ferr
}

// intern returns one copy of a string that many documents share.
func (d *decoder) intern(s string) string {
	const most = 4096 // names that repeat are few; beyond this they do not
	if v, ok := d.names[s]; ok {
		return v
	}
	s = strings.Clone(s)
	if len(d.names) < most {
		d.names[s] = s
	}
	return s
}

func knownVersion(v string) bool { return v == "v1" || v == "v1beta1" || v == "v1alpha3" }

// restrictsAccess names what must never be silently ignored: every kind of security.istio.io, these kinds even with a
// misspelt group, and Sidecar.
func restrictsAccess(group, kind string) bool {
	switch kind {
	case "AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication":
		return true
	case "Sidecar":
		return group == groupNetworking
	}
	return group == groupSecurity
}

// envelope is the part of a document that every kind has.
type envelope struct {
	apiVersion, kind, namespace, name string
	created                           int64
	spec                              json.RawMessage
	items                             []json.RawMessage
}

// parseEnvelope reads the envelope as far as it can: what it returns beside an error still identifies the document.
func parseEnvelope(text []byte) (env envelope, ferr *fieldError) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return env, &fieldError{"", "is not an object with apiVersion, kind, metadata and spec"}
	}
	keep := func(e *fieldError) {
		if ferr == nil {
			ferr = e
		}
	}
	keep(stringField(fields, "apiVersion", "", &env.apiVersion))
	keep(stringField(fields, "kind", "", &env.kind))
	meta := map[string]json.RawMessage{}
	if raw := fields["metadata"]; raw != nil && json.Unmarshal(raw, &meta) != nil {
		keep(&fieldError{"metadata", "should be an object"})
	}
	keep(stringField(meta, "name", "metadata.", &env.name))
	keep(stringField(meta, "namespace", "metadata.", &env.namespace))
	keep(creationTime(meta, &env.created))
	if raw := fields["items"]; raw != nil && json.Unmarshal(raw, &env.items) != nil {
		keep(&fieldError{"items", "should be a list"})
	}
	env.spec = fields["spec"]
	switch {
	case env.kind == "":
		keep(&fieldError{"kind", "is missing"})
	case env.apiVersion == "":
		keep(&fieldError{"apiVersion", "is missing"})
	case env.kind == kindServiceEntry || env.kind == kindWorkloadEntry:
		keep(unknownKey(fields))
	}
	return env, ferr
}

// unknownKey finds a key that no Kubernetes object of ours has; "sepc:" must not read as an empty spec.
func unknownKey(fields map[string]json.RawMessage) *fieldError {
	for _, k := range sortedKeys(fields) {
		switch k {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			return &fieldError{k, "unknown field; known are apiVersion, kind, metadata, spec, status"}
		}
	}
	return nil
}

func stringField(m map[string]json.RawMessage, name, prefix string, into *string) *fieldError {
	raw := m[name]
	if raw == nil || bytes.Equal(raw, []byte("null")) {
		return nil
	}
	if json.Unmarshal(raw, into) != nil {
		return &fieldError{prefix + name, "is " + abridge(string(raw)) + ", should be a string; quote it"}
	}
	return nil
}

func creationTime(meta map[string]json.RawMessage, into *int64) *fieldError {
	var s string
	if ferr := stringField(meta, "creationTimestamp", "metadata.", &s); ferr != nil || s == "" {
		return ferr
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return &fieldError{"metadata.creationTimestamp", fmt.Sprintf("is %q, should be a time such as 2026-01-02T15:04:05Z", abridge(s))}
	}
	*into = t.Unix()
	return nil
}

// toJSON returns the document as JSON. Line numbers in the YAML parser's errors are made those of the file.
func toJSON(c chunk) ([]byte, error) {
	trimmed := bytes.TrimSpace(c.text)
	if len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(trimmed) {
		return trimmed, nil // JSON indented with tabs is not YAML
	}
	text, err := yaml.YAMLToJSONStrict(c.text)
	if err != nil {
		return nil, fmt.Errorf("is not YAML: %s", fileLines(err.Error(), c.line-1))
	}
	return text, nil
}

// fileLines adds offset to the line number of a message of the YAML parser, and makes the message one line.
func fileLines(msg string, offset int) string {
	msg = strings.Join(strings.Fields(strings.TrimPrefix(msg, "yaml: ")), " ")
	return regexp.MustCompile(`\bline (\d+)\b`).ReplaceAllStringFunc(msg, func(m string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(m, "line "))
		if err != nil {
			return m
		}
		return "line " + strconv.Itoa(n+offset)
	})
}
