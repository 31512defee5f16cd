package mesh

import (
	"fmt"
	"hash/maphash"

	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/mesh/wasmplugin"
)

// newFilter makes the compact form of an EnvoyFilter, or says which field is wrong.
func (d *decoder) newFilter(o *object, m *networking.EnvoyFilter) (*envoyfilter.Filter, *document.Error) {
	meta := envoyfilter.Meta{Namespace: o.namespace, Name: o.name, Created: o.created, Sum: o.sum}
	f, remarks, wrong := envoyfilter.New(meta, m)
	if wrong != nil {
		return nil, &document.Error{Field: "spec" + wrong.Field, Reason: wrong.Reason}
	}
	for _, r := range remarks {
		d.remark("spec"+r.Field, "%s", r.Reason)
	}
	return f, nil
}

// plugin fills in the filter that a WasmPlugin asks for.
func (d *decoder) plugin(o *object, env envelope) *document.Error {
	poll, ferr := d.annotation(env, wasmplugin.PollAnnotation)
	if ferr != nil {
		return ferr
	}
	meta := envoyfilter.Meta{Namespace: o.namespace, Name: o.name, Created: o.created}
	f, remarks, ferr := wasmplugin.New(d.Reader, meta, poll, env.spec)
	if ferr != nil {
		return ferr
	}
	if o.sum == ofContent {
		o.sum = d.treeSum(o, poll, env.spec)
	}
	f.Sum, o.filter, d.remarks = o.sum, f, append(d.remarks, remarks...)
	return nil
}

// annotation is one of a document, "" without it.
func (d *decoder) annotation(env envelope, name string) (text string, ferr *document.Error) {
	if v := env.annotations[name]; v != nil {
		text, ferr = d.Text(v)
	}
	return text, ferr.In("metadata.annotations[" + name + "]")
}

// treeSum is the hash of all that o is made of, whose spec is no message. All text of the spec was read before, and so is bounded.
func (d *decoder) treeSum(o *object, annotation string, spec any) uint64 {
	type content struct {
		key              key
		created          int64
		annotation, spec string
	}
	return maphash.Comparable(d.seed, content{o.key(), o.created, annotation, fmt.Sprint(spec)}) // which has maps in the order of their keys
}
