package mesh

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/mesh/wasmplugin"
)

// The kinds that make resources, and the groups that classify the others.
const (
	kindServiceEntry  = "ServiceEntry"
	kindWorkloadEntry = "WorkloadEntry"
	kindEnvoyFilter   = "EnvoyFilter"
	kindWasmPlugin    = wasmplugin.Kind
	kindDeployment    = asmfilter.Kind
	groupNetworking   = "networking.istio.io"
	groupSecurity     = "security.istio.io"
)

// decoded is what one document, or one item of a List, turned out to be.
type decoded struct {
	kind, namespace, name string
	obj                   *object // nil unless status is statusOK, or it is what stands in the place of a bad document
	status                Status
	err                   *document.Error // why it is not statusOK
	remark                *document.Error // what of a good document has no effect
	forbidden             bool            // restricts access, which must never be ignored
}

// decoder turns documents into objects. It is not safe for concurrent use.
type decoder struct {
	*document.Reader
	namespace    string
	allowIgnored bool
	seed         maphash.Seed
	remarks      []*document.Error // on the document or item at hand
}

func newDecoder(o Options) *decoder {
	return &decoder{Reader: document.NewReader(), namespace: o.Namespace, allowIgnored: o.AllowIgnored, seed: maphash.MakeSeed()}
}

// document decodes one document, whose hash is sum: to one result, or one for each item of a List.
func (d *decoder) document(s *document.Stream, c document.Chunk, sum uint64) []decoded {
	tree, err := s.Next(c)
	if err != nil {
		return []decoded{decoded{status: statusError, err: &document.Error{Reason: err.Error()}}.blamed(c)}
	}
	d.Begin(c.Text)
	env, ferr := d.envelope(tree)
	if ferr != nil || env.items == nil || !strings.HasSuffix(env.kind, "List") {
		return []decoded{d.value(env, ferr, sum).blamed(c)}
	}
	out := make([]decoded, 0, len(env.items))
	for _, item := range env.items {
		env, ferr := d.envelope(item)
		one := d.value(env, ferr, ofContent).blamed(c)
		if d.Exhausted() { // none of the items that follow could be read, so none of them is gone
			return []decoded{{status: statusError, err: one.err.In("items")}}
		}
		out = append(out, one)
	}
	return out
}

// blamed says in the reason for which a document is bad that it is an unfilled template, if it is one: what the parser or
// a field's check says of such text leads nobody to the cause.
func (d decoded) blamed(c document.Chunk) decoded {
	if d.status != statusError {
		return d
	}
	if text, line := c.Template(); text != "" {
		d.err = &document.Error{Field: d.err.Field, Reason: fmt.Sprintf("line %d still has the template text %s; render the template first (%s)", line, text, d.err.Reason)}
	}
	return d
}

// ofContent asks for an object whose sum is that of its content, as it has no text of its own.
const ofContent = 0

// value makes the object of an envelope; ferr is what was wrong with the envelope itself.
func (d *decoder) value(env envelope, ferr *document.Error, sum uint64) decoded {
	dec := decoded{kind: d.Intern(env.kind), namespace: d.Intern(env.namespace), name: env.name}
	if dec.namespace == "" {
		dec.namespace = d.namespace
	}
	d.remarks = nil
	if ferr == nil {
		ferr = d.object(&dec, env, sum)
	}
	if ferr != nil {
		dec.status, dec.err = statusError, ferr
	} else {
		dec.remark = document.Join(d.remarks...)
	}
	return dec
}

// remark notes what of the document at hand has no effect although the document is good.
func (d *decoder) remark(field, format string, args ...any) {
	d.remarks = append(d.remarks, document.Errorf(field, format, args...))
}

// object classifies the document by its kind and fills in dec.
func (d *decoder) object(dec *decoded, env envelope, sum uint64) *document.Error {
	group, version, _ := strings.Cut(env.apiVersion, "/")
	switch {
	case restrictsAccess(group, env.kind):
		if !d.allowIgnored {
			dec.forbidden = true
			return &document.Error{Field: "kind", Reason: env.kind + " restricts access, and nothing here enforces it; remove it, or pass --allowIgnored to run without it"}
		}
		dec.status, dec.err = statusIgnored, &document.Error{Field: "kind", Reason: env.kind + " is not enforced (--allowIgnored)"}
		return nil
	case !used(env.kind):
		dec.status, dec.err = statusIgnored, &document.Error{Field: "kind", Reason: fmt.Sprintf("%q is not used here", document.Abridge(env.kind))}
		return nil
	case !knownVersion(env.kind, group, version):
		return &document.Error{Field: "apiVersion", Reason: fmt.Sprintf("is %q, should be %s", document.Abridge(env.apiVersion), apiVersions(env.kind))}
	case env.name == "":
		return &document.Error{Field: "metadata.name", Reason: "is missing"}
	case env.spec == nil:
		return &document.Error{Field: "spec", Reason: "is missing"}
	}
	o := &object{kind: dec.kind, namespace: dec.namespace, name: dec.name, created: env.created, sum: sum}
	read := d.spec
	switch env.kind {
	case kindWasmPlugin:
		read = d.plugin
	case kindDeployment:
		read = d.deployment
	}
	if ferr := read(o, env); ferr != nil {
		dec.obj = d.denial(o, env)
		return ferr
	}
	dec.obj, dec.status = o, statusOK
	return nil
}

// spec fills in what the kind of o says, from the tree of its spec.
func (d *decoder) spec(o *object, env envelope) (ferr *document.Error) {
	var m proto.Message
	switch o.kind {
	case kindServiceEntry:
		m = &networking.ServiceEntry{}
	case kindWorkloadEntry:
		m = &networking.WorkloadEntry{}
	default:
		m = &networking.EnvoyFilter{}
	}
	if ferr = d.Fill(m.ProtoReflect(), env.spec); ferr != nil {
		return ferr.In("spec")
	}
	if o.sum == ofContent {
		if o.sum, ferr = d.contentSum(o, m); ferr != nil {
			return ferr
		}
	}
	switch m := m.(type) {
	case *networking.ServiceEntry:
		o.entry, ferr = d.newEntry(m)
	case *networking.WorkloadEntry:
		o.workload, ferr = d.newWorkload(m)
	case *networking.EnvoyFilter:
		o.filter, ferr = d.newFilter(o, m)
	}
	return ferr
}

// contentSum is the hash of all that o was made of; spec is its message.
func (d *decoder) contentSum(o *object, spec proto.Message) (uint64, *document.Error) {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return 0, &document.Error{Field: "spec", Reason: err.Error()}
	}
	type content struct {
		key     key
		created int64
		spec    string
	}
	return maphash.Comparable(d.seed, content{o.key(), o.created, string(text)}), nil
}

// used says whether documents of a kind make resources.
func used(kind string) bool {
	return kind == kindServiceEntry || kind == kindWorkloadEntry || onlyVersions[kind] != ""
}

// onlyVersions are those of the kinds that have just one.
var onlyVersions = map[string]string{
	kindEnvoyFilter: groupNetworking + "/v1alpha3", kindWasmPlugin: wasmplugin.APIVersion, kindDeployment: asmfilter.APIVersion,
}

// knownVersion says whether a kind is there in a version of a group.
func knownVersion(kind, group, v string) bool {
	if only := onlyVersions[kind]; only != "" {
		return group+"/"+v == only
	}
	return group == groupNetworking && (v == "v1" || v == "v1beta1" || v == "v1alpha3")
}

func apiVersions(kind string) string {
	return cmp.Or(onlyVersions[kind], "one of "+groupNetworking+"/{v1,v1beta1,v1alpha3}")
}

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
	annotations                       map[any]any // of what has a use for them: as they are written
	spec                              any
	items                             []any
}

// envelope reads the envelope as far as it can: what it returns beside an error still identifies the document.
func (d *decoder) envelope(tree any) (env envelope, ferr *document.Error) {
	fields, ok := tree.(map[any]any)
	if !ok && tree != nil {
		return env, &document.Error{Reason: "is not an object with apiVersion, kind, metadata and spec"}
	}
	keep := func(e *document.Error) { ferr = cmp.Or(ferr, e) }
	keep(d.stringField(fields, "apiVersion", &env.apiVersion))
	keep(d.stringField(fields, "kind", &env.kind))
	meta, ok := fields["metadata"].(map[any]any)
	if !ok && fields["metadata"] != nil {
		keep(&document.Error{Field: "metadata", Reason: "should be an object"})
	}
	keep(d.stringField(meta, "name", &env.name).In("metadata."))
	keep(d.stringField(meta, "namespace", &env.namespace).In("metadata."))
	keep(d.creationTime(meta, &env.created).In("metadata."))
	env.annotations, _ = meta["annotations"].(map[any]any)
	if env.items, ok = fields["items"].([]any); !ok && fields["items"] != nil {
		keep(&document.Error{Field: "items", Reason: "should be a list"})
	}
	env.spec = fields["spec"]
	switch {
	case env.kind == "":
		keep(&document.Error{Field: "kind", Reason: "is missing"})
	case env.apiVersion == "":
		keep(&document.Error{Field: "apiVersion", Reason: "is missing"})
	case used(env.kind):
		keep(unknownKey(fields))
	}
	return env, ferr
}

// unknownKey finds a key that no Kubernetes object of ours has; "sepc:" must not read as an empty spec.
func unknownKey(fields map[any]any) *document.Error {
	for _, k := range document.KeyNames(fields) {
		switch k {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			return &document.Error{Field: k, Reason: "unknown field; known are apiVersion, kind, metadata, spec, status"}
		}
	}
	return nil
}

func (d *decoder) stringField(fields map[any]any, name string, into *string) (ferr *document.Error) {
	if v := fields[name]; v != nil {
		*into, ferr = d.Text(v)
	}
	return ferr.In(name)
}

func (d *decoder) creationTime(meta map[any]any, into *int64) *document.Error {
	const name = "creationTimestamp"
	var s string
	if ferr := d.stringField(meta, name, &s); ferr != nil || s == "" {
		return ferr
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return document.Errorf(name, "is %q, should be a time such as 2026-01-02T15:04:05Z", document.Abridge(s))
	}
	*into = t.Unix()
	return nil
}
