package profile

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// decoded reads a profile that must be right.
func decoded(t *testing.T, text string) *Spec {
	t.Helper()
	p, err := Decode([]byte("apiVersion: understudy.mesh/v1alpha1\nkind: SidecarProfile\nmetadata: {name: default}\nspec:\n" + text))
	if err == nil {
		err = p.Validate("")
	}
	if err != nil {
		t.Fatal(err)
	}
	return &p.Spec
}

// asText is a setting as explain writes it.
func asText(t *testing.T, s *Settings, field string) (value, source string) {
	t.Helper()
	for _, row := range s.Rows() {
		if row.Field == field {
			text, err := json.Marshal(row.Value)
			if err != nil {
				t.Fatal(err)
			}
			return string(text), row.Source
		}
	}
	t.Fatalf("no row %s", field)
	return "", ""
}

// chapter8 is the manual's chapter 8 as one namespace. The manual's text says 7015,7016 for the inbound ports that it
// excludes, its output 7013,7014; and it words includeOutboundPorts as an exclusion.
const (
	chapter8Mesh = `
  preset: asm
  capture: {excludeOutboundIPRanges: [192.168.0.1/32]}
`
	chapter8 = `
  proxy:
    resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: 2, memory: 1025Mi}}
    lifecycle: {postStart: {exec: {command: [pilot-agent, wait]}}, preStop: {exec: {command: [/bin/sh, -c, sleep 13]}}}
    terminationDrainDuration: 10s
  init:
    resources: {requests: {cpu: 0.016, memory: 18Mi}, limits: {cpu: 0.916, memory: 512Mi}}
  capture:
    includeOutboundIPRanges: [172.1.1.2/32]
    excludeOutboundIPRanges: [172.1.1.1/32]
    includeInboundPorts: ["*"]
    includeOutboundPorts: [7015, "7016"]
    excludeInboundPorts: [7013, 7014]
    excludeOutboundPorts: [7011, 7012]
  dns: {capture: true, autoAllocate: true}
`
)

func TestChapter8(t *testing.T) {
	s := Resolve(Layer{"namespace test", decoded(t, chapter8)}, Layer{SourceMesh, decoded(t, chapter8Mesh)})
	for field, want := range map[string][2]string{
		"preset":                          {`"asm"`, "mesh"},
		"proxy.resources":                 {`{"limits":{"cpu":"2","memory":"1025Mi"},"requests":{"cpu":"100m","memory":"128Mi"}}`, "namespace test"},
		"init.resources":                  {`{"limits":{"cpu":"916m","memory":"512Mi"},"requests":{"cpu":"16m","memory":"18Mi"}}`, "namespace test"},
		"capture.includeOutboundIPRanges": {`["172.1.1.2/32"]`, "namespace test"},
		"capture.excludeOutboundIPRanges": {`["192.168.0.1/32","172.1.1.1/32"]`, "namespace test, mesh"},
		"capture.includeInboundPorts":     {`["*"]`, "namespace test"},
		"capture.excludeInboundPorts":     {`[15090,15021,15081,9191,7013,7014]`, "namespace test, preset asm, built-in"},
		"capture.excludeOutboundPorts":    {`[7011,7012]`, "namespace test"},
		"capture.includeOutboundPorts":    {`[7015,"7016"]`, "namespace test"},
		"proxy.terminationDrainDuration":  {`"10s"`, "namespace test"},
		"proxy.statusPort":                {`15021`, "preset asm"},
		"proxy.env.DNS_AGENT":             {`""`, "preset asm"},
		"dns.capture":                     {`true`, "namespace test"},
		"controlPlane.meshID":             {`"cluster.local"`, "built-in, as controlPlane.trustDomain"},
	} {
		if value, source := asText(t, s, field); value != want[0] || source != want[1] {
			t.Errorf("%s: %s by %s, want %s by %s", field, value, source, want[0], want[1])
		}
	}
	if got, want := *s.Proxy.Config, `{"statusPort":15021,"terminationDrainDuration":"10s"}`; got != want {
		t.Errorf("PROXY_CONFIG is %s, want %s", got, want)
	}
	if l := s.Proxy.Lifecycle; l == nil || !slices.Equal(l.PreStop.Exec.Command, []string{"/bin/sh", "-c", "sleep 13"}) {
		t.Errorf("lifecycle: %v", l)
	}
	if warnings, err := s.Check(30); len(warnings) > 0 || err != nil && !strings.Contains(err.Error(), "proxy.image") {
		t.Errorf("%q, %v", warnings, err)
	}
}

func TestWithoutAProfileItIsIstios(t *testing.T) {
	s := Resolve()
	if got := fmt.Sprint(s.Capture.ExcludeInboundPorts); got != "[{0 15090 } {0 15021 } {0 15020 }]" {
		t.Errorf("exclusions: %s", got)
	}
	if *s.Proxy.Config != "{}" || *s.Preset != PresetIstio || s.Hot() {
		t.Errorf("config %s, preset %s, hot %v", *s.Proxy.Config, *s.Preset, s.Hot())
	}
	for _, row := range s.Rows() {
		if row.Value != nil && row.Source == "" {
			t.Errorf("%s has no source", row.Field)
		}
	}
}

// Every field, at its own path, is the most specific layer's; and absent is not empty.
func TestEveryFieldInherits(t *testing.T) {
	united := []string{"capture.excludeInboundPorts", "capture.excludeOutboundPorts", "capture.excludeOutboundIPRanges", configPath, envPath}
	n := 0
	eachLeaf(reflect.TypeFor[Spec](), "", nil, func(path string, index []int) {
		n++
		if slices.Contains(united, path) || path == "preset" {
			return // others test them
		}
		low, high := specWith(index), specWith(index)
		for _, layers := range [][]Layer{{{"pod", high}, {SourceMesh, low}}, {{"pod", high}, {"namespace", low}}, {{"pod", &Spec{}}, {"empty", nil}, {"pod", high}, {SourceMesh, low}}} {
			s := Resolve(layers...)
			if got := s.sources[path]; got != "pod" {
				t.Errorf("%s: by %q, want pod", path, got)
			}
			if got := at(reflect.ValueOf(&s.Spec).Elem(), index); got.Pointer() != at(reflect.ValueOf(high).Elem(), index).Pointer() {
				t.Errorf("%s: not the value of the most specific layer", path)
			}
		}
		if got := Resolve(Layer{"pod", &Spec{}}, Layer{SourceMesh, low}).sources[path]; got != SourceMesh {
			t.Errorf("%s: absent in the pod, and by %q", path, got)
		}
	})
	if n < 50 {
		t.Errorf("only %d fields", n)
	}
}

// eachLeaf visits every setting of a type with its path.
func eachLeaf(of reflect.Type, path string, index []int, visit func(path string, index []int)) {
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p, ix := strings.TrimPrefix(path+"."+name, "."), append(slices.Clone(index), i)
		if isOurs(f.Type) {
			eachLeaf(f.Type.Elem(), p, ix, visit)
			continue
		}
		visit(p, ix)
	}
}

// specWith is a spec in which one field is there, and empty.
func specWith(index []int) *Spec {
	s := &Spec{}
	v := reflect.ValueOf(s).Elem()
	for _, i := range index {
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
			v = v.Elem()
		}
		v = v.Field(i)
	}
	switch v.Kind() {
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 0, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	default:
		v.Set(reflect.New(v.Type().Elem()))
	}
	return s
}

// at is the field of a struct whose pointers are set.
func at(v reflect.Value, index []int) reflect.Value {
	for _, i := range index {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		v = v.Field(i)
	}
	return v
}

func TestExclusionsAreAFloor(t *testing.T) {
	ports := func(list ...int32) *Spec {
		c := &Capture{ExcludeInboundPorts: []intstr.IntOrString{}}
		for _, p := range list {
			c.ExcludeInboundPorts = append(c.ExcludeInboundPorts, intstr.FromInt32(p))
		}
		return &Spec{Capture: c}
	}
	tests := []struct {
		layers []Layer
		want   string
	}{
		{[]Layer{{"pod", ports(1, 2)}, {"namespace", ports(3)}, {SourceMesh, ports(4, 2)}}, "15090 15021 15020 4 2 1"},
		{[]Layer{{"pod", &Spec{}}, {"namespace", ports(3, 3, 15090)}, {SourceMesh, ports(4)}}, "15090 15021 15020 4 3"},
		{[]Layer{{"pod", ports()}, {"namespace", ports(3)}, {SourceMesh, ports(4)}}, "15090 15021 15020 4"}, // an empty list is a list
		{[]Layer{{"pod", ports(1)}, {SourceMesh, &Spec{Preset: new(PresetASM), Capture: ports(4).Capture}}}, "15090 15021 15081 9191 4 1"},
		{[]Layer{{"pod", ports(1)}}, "15090 15021 15020 1"},
		{[]Layer{{SourceMesh, &Spec{Proxy: &Proxy{StatusPort: new(int32(0))}}}}, "15090 15021"},
		{[]Layer{{"pod", &Spec{Proxy: &Proxy{StatusPort: new(int32(8020))}}}}, "15090 15021 8020"},
	}
	for _, tt := range tests {
		var got []string
		for _, p := range Resolve(tt.layers...).Capture.ExcludeInboundPorts {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v, want %s", got, tt.want)
		}
	}
}

func TestMapsAreMergedByKey(t *testing.T) {
	pod := &Spec{Proxy: &Proxy{Config: new("proxyMetadata: {A: pod, ISTIO_META_DNS_CAPTURE: 'true'}\ntracing: {sampling: 1}\nconcurrency: 3"), Concurrency: new(int32(2))}}
	namespace := &Spec{Proxy: &Proxy{Env: map[string]string{"A": "ns", "B": ""}, Config: new("proxyMetadata: {D: d}\nconcurrency: 5\nterminationDrainDuration: 7s")}}
	mesh := &Spec{Proxy: &Proxy{Env: map[string]string{"C": "mesh"}, Config: new("tracing: {sampling: 9}\nstatusPort: 16000\nproxyStatsMatcher: {inclusionPrefixes: [x]}")}}
	s := Resolve(Layer{"pod", pod}, Layer{"namespace", namespace}, Layer{SourceMesh, mesh})
	if want := map[string]string{"A": "pod", "B": "", "C": "mesh", "D": "d"}; !maps.Equal(s.Proxy.Env, want) {
		t.Errorf("env %v, want %v", s.Proxy.Env, want)
	}
	want := `{"concurrency":2,"proxyStatsMatcher":{"inclusionPrefixes":["x"]},"statusPort":16000,"terminationDrainDuration":"7s","tracing":{"sampling":1}}`
	if *s.Proxy.Config != want {
		t.Errorf("config %s, want %s", *s.Proxy.Config, want)
	}
	if !*s.DNS.Capture || !*s.DNS.AutoAllocate || *s.Proxy.StatusPort != 16000 {
		t.Errorf("dns %v, status port %d", *s.DNS.Capture, *s.Proxy.StatusPort)
	}
	if pod.Proxy.Env != nil || pod.DNS != nil || len(namespace.Proxy.Env) != 2 {
		t.Error("a layer was changed")
	}
}
