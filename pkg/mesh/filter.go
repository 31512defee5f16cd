package mesh

import (
	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
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
