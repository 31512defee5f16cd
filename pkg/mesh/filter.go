package mesh

import (
	"encoding/json"
	"fmt"
	"hash/maphash"

	"google.golang.org/protobuf/encoding/protojson"
	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/mesh/wasmplugin"
)

// newFilter makes the compact form of an EnvoyFilter, or says which field is wrong.
func (d *decoder) newFilter(o *object, m *networking.EnvoyFilter) (*envoyfilter.Filter, *document.Error) {
	f, remarks, wrong := envoyfilter.New(o.meta(), m)
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
	poll, ferr := d.Annotation(env.annotations, wasmplugin.PollAnnotation)
	if ferr != nil {
		return ferr
	}
	f, remarks, ferr := wasmplugin.New(d.Reader, o.meta(), poll, env.spec)
	if ferr != nil {
		return ferr
	}
	d.sumTree(o, poll, env.spec)
	f.Sum, o.filter, d.remarks = o.sum, f, append(d.remarks, remarks...)
	return nil
}

// denial is what stands in the place of a bad WasmPlugin of which there is no good version, nil: nothing.
func (d *decoder) denial(o *object, env envelope) *object {
	if env.kind != kindWasmPlugin {
		return nil
	}
	f, read, err := wasmplugin.Denial(d.Reader, o.meta(), env.spec)
	if f == nil || err != nil {
		return nil
	}
	if o.sum == ofContent {
		var ferr *document.Error
		if o.sum, ferr = d.contentSum(o, read); ferr != nil {
			return nil
		}
	}
	f.Sum = o.sum
	return &object{kind: o.kind, namespace: o.namespace, name: o.name, created: o.created, sum: o.sum, filter: f, denial: true}
}

// deployment fills in the EnvoyFilter that an ASMFilterDeployment becomes.
func (d *decoder) deployment(o *object, env envelope) *document.Error {
	strategy, ferr := d.Annotation(env.annotations, asmfilter.FailStrategyAnnotation)
	if ferr != nil {
		return ferr
	}
	doc, ferr := readDeployment(d.Reader, o.namespace, o.name, strategy, env.spec)
	if ferr != nil {
		return ferr
	}
	m := &networking.EnvoyFilter{}
	text, err := json.Marshal(doc.EnvoyFilter())
	if err == nil {
		err = protojson.Unmarshal(text, m)
	}
	if err != nil {
		return document.Errorf("spec", "%v", err)
	}
	d.sumTree(o, strategy, env.spec)
	meta := o.meta()
	meta.Kind, meta.Sum = o.kind, o.sum
	f, _, wrong := envoyfilter.New(meta, m)
	if wrong != nil {
		return document.Errorf("spec", "%v", wrong)
	}
	o.filter = f
	return nil
}

func readDeployment(r *document.Reader, namespace, name, strategy string, spec any) (*asmfilter.Document, *document.Error) {
	tree, ferr := r.JSON(spec)
	if ferr != nil {
		return nil, ferr.In("spec")
	}
	doc, wrong := asmfilter.Read(namespace, name, strategy, tree)
	if wrong != nil {
		return nil, document.Errorf(wrong.Field, "%s", wrong.Reason)
	}
	return doc, nil
}

// ReadDeployments reads every ASMFilterDeployment of a file, in which documents of other kinds are passed over. One without a namespace
// is of the namespace that is given. The error names each document that is bad; then there are none.
func ReadDeployments(data []byte, namespace string) ([]*asmfilter.Document, error) {
	var all []*asmfilter.Document
	err := document.Each(data, asmfilter.Kind, asmfilter.APIVersion, namespace, func(r *document.Reader, m document.Metadata, spec any) *document.Error {
		strategy, ferr := r.Annotation(m.Annotations, asmfilter.FailStrategyAnnotation)
		if ferr != nil {
			return ferr
		}
		doc, ferr := readDeployment(r, m.Namespace, m.Name, strategy, spec)
		if ferr == nil {
			all = append(all, doc)
		}
		return ferr
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func (o *object) meta() envoyfilter.Meta {
	return envoyfilter.Meta{Namespace: o.namespace, Name: o.name, Created: o.created, Sum: o.sum}
}

// sumTree gives o, of a List, the hash of all that it is made of, where its spec is no message. All text of the spec was read before,
// and so is bounded.
func (d *decoder) sumTree(o *object, annotation string, spec any) {
	if o.sum != ofContent {
		return
	}
	type content struct {
		key              key
		created          int64
		annotation, spec string
	}
	o.sum = maphash.Comparable(d.seed, content{o.key(), o.created, annotation, fmt.Sprint(spec)}) // which has maps in the order of their keys
}
