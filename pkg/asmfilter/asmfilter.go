// Package asmfilter owns ASMFilterDeployment (istio.alibabacloud.com/v1beta1): what one says, and the EnvoyFilter that it becomes. With
// files the agent applies that, under istiod the injector writes it for istiod to apply.
package asmfilter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
)

const (
	// Kind is that of the document.
	Kind = "ASMFilterDeployment"
	// APIVersion is the one that there is.
	APIVersion = "istio.alibabacloud.com/v1beta1"
	// FailStrategyAnnotation says what becomes of traffic without the module: FAIL_CLOSE, the default, FAIL_OPEN or FAIL_RELOAD.
	FailStrategyAnnotation = "understudy.mesh/fail-strategy"
)

const (
	// FilterPrefix is before namespace.name in the name of the filter.
	FilterPrefix = "istio.alibabacloud.com/asmfilterdeployment/"
	// envSecret is the variable by which the agent knows the pull secret; no module sees it.
	envSecret = "ISTIO_META_UNDERSTUDY_WASM_OPTIONAL_SECRET"
	// maxText bounds each text but the parameters, which the object itself bounds.
	maxText = 1024
)

// object is one in JSON.
type object = map[string]any

// Document is one ASMFilterDeployment.
type Document struct {
	Namespace, Name string
	kind            string            // of the workload: for people, as labels select
	labels          map[string]string // of the workload
	patchContext    string
	parameters      string // for the module, byte for byte
	image           string
	rootID, id      string
	failurePolicy   string // "": Envoy's default, which is to close
}

// FieldError is what is wrong with a document.
type FieldError struct{ Field, Reason string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

func wrong(field, format string, args ...any) *FieldError {
	return &FieldError{field, fmt.Sprintf(format, args...)}
}

var (
	contexts = []string{"SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "ANY", "GATEWAY"}
	// policies are Envoy's words for the strategies.
	policies = map[string]string{"": "", "FAIL_CLOSE": "", "FAIL_OPEN": "FAIL_OPEN", "FAIL_RELOAD": "FAIL_RELOAD"}
)

// Read reads a document: its metadata, and its spec as JSON has it. It is strict; the error names the field.
func Read(namespace, name, failStrategy string, spec any) (*Document, *FieldError) {
	d := &Document{Namespace: namespace, Name: name}
	policy, known := policies[failStrategy]
	if !known {
		return nil, wrong("metadata.annotations["+FailStrategyAnnotation+"]", "is %q, should be FAIL_CLOSE, FAIL_OPEN or FAIL_RELOAD", abridged(failStrategy))
	}
	d.failurePolicy = policy
	var workload, filter object
	err := fields("spec", spec, map[string]any{"workload": &workload, "filter": &filter})
	if err == nil {
		err = fields("spec.workload", workload, map[string]any{"kind": &d.kind, "labels": &d.labels})
	}
	if err == nil {
		err = fields("spec.filter", filter, map[string]any{
			"patchContext": &d.patchContext, "parameters": &d.parameters, "image": &d.image, "rootID": &d.rootID, "id": &d.id,
		})
	}
	if err != nil {
		return nil, err
	}
	d.patchContext = cmp.Or(d.patchContext, contexts[0])
	d.id = cmp.Or(d.id, name+"."+namespace)
	if err := d.check(); err != nil {
		return nil, err
	}
	return d, nil
}

// check says what the values of a document are not.
func (d *Document) check() *FieldError {
	switch {
	case d.kind == "":
		return wrong("spec.workload.kind", "is missing, should be that of the workload, such as Deployment")
	case len(d.labels) == 0:
		return wrong("spec.workload.labels", "is missing: without labels the filter would be for every pod of the namespace")
	case !slices.Contains(contexts, d.patchContext):
		return wrong("spec.filter.patchContext", "is %q, should be one of %s", abridged(d.patchContext), strings.Join(contexts, ", "))
	case d.image == "":
		return wrong("spec.filter.image", "is missing, should be the name of an image, such as registry.example.com/filters/headers:v1")
	case strings.Contains(d.image, "://") && !strings.HasPrefix(d.image, "oci://"):
		return wrong("spec.filter.image", "is %q, should be the name of an image, such as registry.example.com/filters/headers:v1", abridged(d.image))
	}
	for field, text := range map[string]string{"workload.kind": d.kind, "filter.image": d.image, "filter.rootID": d.rootID, "filter.id": d.id} {
		if len(text) > maxText {
			return wrong("spec."+field, "has %d bytes, should have at most %d", len(text), maxText)
		}
	}
	return nil
}

// fields sets what a JSON object has to the variables of its fields: texts, objects, and maps of texts.
func fields(at string, value any, into map[string]any) *FieldError {
	given, ok := value.(object)
	if !ok {
		return wrong(at, "should be an object with %s", strings.Join(slices.Sorted(maps.Keys(into)), ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		field, v := at+"."+abridged(name), given[name]
		switch to := into[name].(type) {
		case nil:
			return wrong(field, "unknown field; known are %s", strings.Join(slices.Sorted(maps.Keys(into)), ", "))
		case *string:
			if *to, ok = v.(string); !ok {
				return wrong(field, "is %s, should be a string: put it in quotes", kindOf(v))
			}
		case *object:
			if *to, ok = v.(object); !ok {
				return wrong(field, "is %s, should be an object", kindOf(v))
			}
		case *map[string]string:
			labels, ok := v.(object)
			if !ok {
				return wrong(field, "is %s, should be an object of strings", kindOf(v))
			}
			*to = map[string]string{}
			for _, k := range slices.Sorted(maps.Keys(labels)) {
				if (*to)[k], ok = labels[k].(string); !ok {
					return wrong(field+"."+abridged(k), "is %s, should be a string: put it in quotes", kindOf(labels[k]))
				}
			}
		}
	}
	return nil
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case object:
		return "an object"
	case []any:
		return "a list"
	}
	return "a number"
}

func abridged(text string) string {
	const most = 100
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// Types and names of Envoy's and Istio's.
const (
	typePrefix  = "type.googleapis.com/"
	wasmType    = typePrefix + "envoy.extensions.filters.http.wasm.v3.Wasm"
	rbacType    = typePrefix + "envoy.extensions.filters.http.rbac.v3.RBAC"
	textType    = typePrefix + "google.protobuf.StringValue"
	manager     = "envoy.filters.network.http_connection_manager"
	router      = "envoy.filters.http.router"
	denyPrefix  = "wasm-default-deny" // of Istio's statistics, like the next
	allowPrefix = "wasm-default-allow"
)

// Manifest is the EnvoyFilter that the document becomes, of its name.
func (d *Document) Manifest() map[string]any {
	return object{
		"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
		"metadata": object{"namespace": d.Namespace, "name": d.Name}, "spec": d.EnvoyFilter(),
	}
}

// EnvoyFilter is the spec of the EnvoyFilter that the document becomes, as JSON has it: a filter of HTTP before the router, whose
// configuration Envoy discovers, so that neither the listener nor its traffic waits for the image longer than the strategy says.
func (d *Document) EnvoyFilter() map[string]any {
	name := FilterPrefix + d.Namespace + "." + d.Name
	return object{
		"workloadSelector": object{"labels": asAny(d.labels)},
		"configPatches": []any{
			object{
				"applyTo": "EXTENSION_CONFIG",
				"match":   object{"context": d.patchContext},
				"patch":   object{"operation": "ADD", "value": object{"name": name, "typed_config": object{"@type": wasmType, "config": d.plugin()}}},
			},
			object{
				"applyTo": "HTTP_FILTER",
				"match": object{
					"context":  d.patchContext,
					"listener": object{"filterChain": object{"filter": object{"name": manager, "subFilter": object{"name": router}}}},
				},
				"patch": object{"operation": "INSERT_BEFORE", "value": object{
					"name": name,
					"config_discovery": object{
						"config_source":                        object{"ads": object{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
						"type_urls":                            []any{wasmType, rbacType},
						"default_config":                       d.instead(),
						"apply_default_config_without_warming": true,
					},
				}},
			},
		},
	}
}

// plugin is the configuration of the filter.
func (d *Document) plugin() object {
	url := d.image
	if !strings.HasPrefix(url, "oci://") {
		url = "oci://" + url
	}
	p := object{
		"name":    d.id,
		"root_id": d.rootID,
		"vm_config": object{
			"vm_id":                 d.id,
			"runtime":               "envoy.wasm.runtime.v8",
			"environment_variables": object{"key_values": object{envSecret: contract.ASMPullSecret}},
			// No Envoy fetches it: time-out and cluster are what the API demands.
			"code": object{"remote": object{"http_uri": object{"uri": url, "timeout": "30s", "cluster": "_"}}},
		},
	}
	if d.parameters != "" {
		p["configuration"] = object{"@type": textType, "value": d.parameters}
	}
	if d.failurePolicy != "" {
		p["failure_policy"] = d.failurePolicy
	}
	return p
}

// instead stands in the place of the filter until Envoy has it: what refuses every request, or none.
func (d *Document) instead() object {
	if d.failurePolicy == "FAIL_OPEN" {
		return object{"@type": rbacType, "rules_stat_prefix": allowPrefix}
	}
	return object{"@type": rbacType, "rules": object{}, "rules_stat_prefix": denyPrefix}
}

func asAny(texts map[string]string) object {
	out := make(object, len(texts))
	for k, v := range texts {
		out[k] = v
	}
	return out
}
