package config

import (
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

//go:generate go test -tags vtprotobuf,grpcnotrace -run TestReferencePage -update .

var update = flag.Bool("update", false, "write golden files anew")

const referencePage = "../../docs/settings.md"

// TestReferencePage fails when docs/settings.md is not what the table says.
func TestReferencePage(t *testing.T) {
	want := Reference()
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/settings.md is stale, run `go generate ./pkg/config` (-table +page):\n%s", diff)
	}
}

// TestTable checks each row by itself: names are unique, a field takes what the kind
// parses, the default parses, and a row without effect says why.
func TestTable(t *testing.T) {
	names := map[string]string{}
	unique := func(space, name, setting string) {
		if name == "" {
			return
		}
		if other, taken := names[space+name]; taken {
			t.Errorf("%s %q belongs to %s and to %s", space, name, other, setting)
		}
		names[space+name] = setting
	}
	for _, s := range Settings() {
		unique("setting", s.name, s.name)
		unique("flag", s.Flag, s.name)
		unique("variable", s.Env, s.name)
		unique("annotation", s.annotation, s.name)
		unique("ProxyConfig field", s.proxy, s.name)
		unique("MeshConfig field", s.mesh, s.name)
		unique("Config field", s.field, s.name)
		if s.Doc == "" || s.name == "" || s.group == "" {
			t.Errorf("%+v: name, doc and group must not be empty", s)
		}
		if s.Effect != UnderIstiod && (s.Effect != Effective || s.field == "") == (s.why == "") {
			t.Errorf("%s: a row without effect or field, and no other, says why", s.name)
		}
		if s.Effect > UnderIstiod && s.field != "" {
			t.Errorf("%s has a field and no effect", s.name)
		}
		checkKind(t, s)
	}
}

// checkKind makes the kind parse the default, or something that every kind takes.
func checkKind(t *testing.T, s Setting) {
	t.Helper()
	text := s.Default
	if text == "" {
		text = map[Kind]string{IP: "::1", Size: "1", Memory: "1", Count: "1", Cores: "1", StringMap: "{}", JSONObject: "{}", Duration: "1s", Bool: "true", PortOrOff: "0", Mark: "1", Limit: "1",
			HostPort: "a:1", TracerKind: "{}", ServiceKind: "{}", ProbeKind: "{}", BucketMap: "{}", CloudName: "none"}[s.Kind]
	}
	value, err := s.Kind.parse(text)
	if err != nil {
		t.Errorf("%s: %q: %v", s.name, text, err)
		return
	}
	if s.field == "" {
		return
	}
	field, ok := reflect.TypeFor[Config]().FieldByName(s.field)
	if !ok {
		t.Errorf("%s: Config has no field %s", s.name, s.field)
	} else if got := reflect.TypeOf(value); got != field.Type {
		t.Errorf("%s: the kind gives %s, the field is %s", s.name, got, field.Type)
	}
}

// TestPathsExist finds rows whose path is in no API message and in no list of dropped
// fields: a misspelt path would never be read.
func TestPathsExist(t *testing.T) {
	dropped := map[string]bool{"parentShutdownDuration": true, "connectTimeout": true}
	for _, s := range Settings() {
		for _, f := range []struct {
			path string
			msg  interface{ ProtoReflect() protoMessage }
		}{{s.proxy, &meshv1alpha1.ProxyConfig{}}, {s.mesh, &meshv1alpha1.MeshConfig{}}} {
			if f.path != "" && !dropped[f.path] && !hasPath(f.msg.ProtoReflect().Descriptor(), f.path) {
				t.Errorf("%s: no field %s in %T", s.name, f.path, f.msg)
			}
		}
	}
}

func TestEffective(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{
		Environ: []string{`ISTIO_KUBE_APP_PROBERS={"/app-health/a/readyz":{"httpGet":{"httpHeaders":[{"name":"Authorization","value":"s3cret"}]}}}`, "POD_NAME=a"},
		Flags:   map[string]string{"lightstepAccessToken": "t0ken"},
	})
	values := map[string]Value{}
	for _, v := range cfg.Effective() {
		values[v.Name] = v
	}
	want := map[string]Value{
		"appProbers":           {"appProbers", masked, sourceEnv},
		"podName":              {"podName", "a", sourceEnv},
		"drainDuration":        {"drainDuration", "45s", sourceDefault},
		"upgradeDrainDuration": {"upgradeDrainDuration", "1m0s", sourceDerived},
	}
	for name, w := range want {
		if values[name] != w {
			t.Errorf("%+v, want %+v", values[name], w)
		}
	}
	if _, ok := values["lightstepAccessToken"]; ok {
		t.Error("the dump shows a setting without effect")
	}
}

// A switch is on or off, in any case, and as a boolean; what else is said is named.
func TestSwitch(t *testing.T) {
	for text, want := range map[string]bool{"on": true, "OFF": false, "true": true, "false": false} {
		if got, err := Switch.parse(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "no"} {
		if _, err := Switch.parse(text); err == nil || err.Error() != "want on or off" {
			t.Errorf("%q: %v", text, err)
		}
	}
}
