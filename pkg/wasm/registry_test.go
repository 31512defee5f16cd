package wasm

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestImageForms: each form in which a module is in a registry.
func TestImageForms(t *testing.T) {
	module := sample(1)
	packed := zipped(tarred(item{name: "./", kind: '5'}, item{name: "./plugin.wasm", data: module}, item{name: "runtime-config.json", data: []byte("{}")}))
	config := layer{"application/vnd.module.wasm.config.v1+json", []byte("{}")}
	for _, tc := range []struct {
		why, kind string
		layers    []layer
	}{
		{"one layer, as oras pushes it", typeImage, []layer{{typeWasmLayer, module}}},
		{"two layers", typeImage, []layer{config, {typeWasmLayer, module}}},
		{"two layers, the other way round", typeImage, []layer{{typeWasmLayer, module}, config}},
		{"of the CNCF", typeImage, []layer{{typeWasm, module}}},
		{"an OCI image", typeImage, []layer{{typeLayerGzip, packed}}},
		{"an OCI image with a layer before", typeImage, []layer{{typeLayerGzip, zipped(tarred(item{name: "etc/passwd"}))}, {typeLayerGzip, packed}}},
		{"an image that is not packed", typeImage, []layer{{typeLayer, tarred(item{name: "plugin.wasm", data: module})}}},
		{"a Docker image", typeDockerImage, []layer{{typeDockerGzip, packed}}},
		{"a layer of Wasm that is packed all the same", typeImage, []layer{{typeWasmLayer, zipped(module)}}},
	} {
		r := newRegistry(t, false)
		digest := r.push("v1", tc.kind, tc.layers...)
		name := "oci://" + r.host() + "/a/filter:v1"
		for _, src := range []Source{{URL: name}, {URL: name, SHA256: sum(module)}, {URL: name, SHA256: "sha256:" + strings.ToUpper(digest)},
			{URL: r.host() + "/a/filter@sha256:" + digest}} {
			s := newStore(t, nil)
			m, err := resolve(t, s, src)
			if err != nil || m.SHA256 != sum(module) || m.Digest != digest || m.Size != int64(len(module)) || m.ABI != "0.2.1" {
				t.Fatalf("%s, %+v: %+v, %v", tc.why, src, m, err)
			}
			data, err := os.ReadFile(m.Path)
			info, statErr := os.Stat(m.Path)
			if err != nil || statErr != nil || sum(data) != m.SHA256 || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %d bytes, %v, %v", tc.why, len(data), err, info.Mode())
			}
		}
	}
}

func TestIndexes(t *testing.T) {
	r := newRegistry(t, false)
	type platform = map[string]string
	push := func(salt uint64) (string, int, []byte) {
		module := sample(salt)
		digest := r.push(fmt.Sprint("image", salt), typeImage, layer{typeWasm, module})
		return "sha256:" + digest, len(r.manifests[fmt.Sprint("image", salt)]), module
	}
	entryOf := func(salt uint64, p platform) map[string]any {
		digest, size, _ := push(salt)
		return map[string]any{"mediaType": typeImage, "digest": digest, "size": size, "platform": p}
	}
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for _, tc := range []struct {
		why     string
		entries []map[string]any
		want    uint64 // 0: none
	}{
		{"one for Wasm", []map[string]any{entryOf(1, platform{"os": "linux", "architecture": runtime.GOARCH}), entryOf(2, platform{"os": "wasip1", "architecture": "wasm"})}, 2},
		{"the only one", []map[string]any{entryOf(3, platform{"os": "linux", "architecture": other})}, 3},
		{"the only one beside an attestation", []map[string]any{entryOf(3, nil), entryOf(4, platform{"os": "unknown", "architecture": "unknown"})}, 3},
		{"the one for this machine", []map[string]any{entryOf(4, platform{"os": "linux", "architecture": other}), entryOf(5, platform{"os": "linux", "architecture": runtime.GOARCH})}, 5},
		{"none for this machine", []map[string]any{entryOf(4, platform{"os": "linux", "architecture": other}), entryOf(5, platform{"os": "plan9", "architecture": runtime.GOARCH})}, 0},
	} {
		for _, kind := range []string{typeIndex, typeDockerIndex} {
			digest := r.put("index", kind, map[string]any{"schemaVersion": 2, "mediaType": kind, "manifests": tc.entries})
			m, err := resolve(t, newStore(t, nil), Source{URL: r.host() + "/a:index", SHA256: digest})
			if tc.want == 0 && (err == nil || !strings.Contains(err.Error(), "none for Wasm or linux/")) || tc.want > 0 && (err != nil || m.SHA256 != sum(sample(tc.want))) {
				t.Errorf("%s: %+v, %v", tc.why, m, err)
			}
		}
	}
	nested := r.put("inner", typeIndex, map[string]any{"mediaType": typeIndex, "manifests": []map[string]any{entryOf(1, nil)}})
	r.put("outer", typeIndex, map[string]any{"mediaType": typeIndex, "manifests": []map[string]any{
		{"mediaType": typeImage, "digest": "sha256:" + nested, "size": len(r.manifests["inner"])}}})
	if _, err := resolve(t, newStore(t, nil), Source{URL: r.host() + "/a:outer"}); err == nil {
		t.Error("an index of indexes: no error")
	}
}

// TestRegistryFaults: what a registry can do wrong is named, and leaves nothing in the store.
func TestRegistryFaults(t *testing.T) {
	module := sample(1)
	blob := "sha256:" + sum(module)
	answer := func(kind string, do func(w http.ResponseWriter)) func(*fakeRegistry) {
		return func(r *fakeRegistry) {
			r.fault = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, "/"+kind+"/") {
					do(w)
					return true
				}
				return false
			}
		}
	}
	code := func(kind string, status int) func(*fakeRegistry) {
		return answer(kind, func(w http.ResponseWriter) { w.WriteHeader(status) })
	}
	manifest := func(text string) func(*fakeRegistry) {
		return func(r *fakeRegistry) { r.put("v1", typeImage, text) }
	}
	for _, tc := range []struct {
		why   string
		fault func(*fakeRegistry)
		want  string
	}{
		{"no such tag", func(r *fakeRegistry) { r.manifests = nil }, "not found"},
		{"no credentials", func(r *fakeRegistry) { r.user = "a:b" }, "credential"},
		{"forbidden", code("manifests", 403), "403"},
		{"a failing registry", code("manifests", 500), "500"},
		{"too many requests", code("blobs", 429), "429"},
		{"no such layer", code("blobs", 404), "not found"},
		{"a manifest that is no JSON", manifest("<html>"), "no JSON of a manifest"},
		{"a manifest of another kind", manifest(`{"layers":3}`), "no JSON of a manifest"},
		{"a manifest that is too large", manifest(strings.Repeat(" ", maxManifest) + "{}"), "4194306"},
		{"no layers", manifest(`{"layers":[]}`), "no layers"},
		{"layers of something else", manifest(`{"layers":[{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip","digest":"` + blob + `","size":3}]}`), "helm.chart"},
		{"two modules", manifest(`{"layers":[{"mediaType":"application/wasm"},{"mediaType":"application/wasm"}]}`), "2 layers of type application/wasm"},
		{"a digest that is none", manifest(`{"layers":[{"mediaType":"application/wasm","digest":"sha256:../../x","size":3}]}`), "something of digest"},
		{"a negative size", manifest(`{"layers":[{"mediaType":"application/wasm","digest":"` + blob + `","size":-1}]}`), "-1 bytes"},
		{"a layer that is said to be too large", manifest(`{"layers":[{"mediaType":"application/wasm","digest":"` + blob + `","size":99999999}]}`), "ISTIO_WASM_MAX_BINARY_SIZE_BYTES"},
		{"a layer of another size than is said", manifest(fmt.Sprintf(`{"layers":[{"mediaType":"application/wasm","digest":"%s","size":%d}]}`, blob, len(module)-1)), "ontent-Length"},
		{"another layer", func(r *fakeRegistry) { r.blobs[blob] = sample(2) }, "not what the manifest says"},
		{"a layer that breaks off", answer("blobs", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(module)))
			_, _ = w.Write(module[:100])
		}), "unexpected EOF"},
		{"a page instead of a layer", func(r *fakeRegistry) { r.push("v1", typeImage, layer{typeWasm, []byte("<html>")}) }, `it begins with "<html>"`},
		{"an image without a module", func(r *fakeRegistry) {
			r.push("v1", typeImage, layer{typeLayerGzip, zipped(tarred(item{name: "filter.wasm", data: module}))})
		}, "no file plugin.wasm, but filter.wasm"},
		{"endless redirects", answer("blobs", func(w http.ResponseWriter) { w.Header().Set("Location", "x"); w.WriteHeader(302) }), "redirect"},
		{"a redirect to metadata", answer("blobs", func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://169.254.169.254/latest/meta-data/?X-Amz-Signature=hush")
			w.WriteHeader(302)
		}), "169.254.169.254 is in 169.254.0.0/16"},
	} {
		r := newRegistry(t, false)
		r.push("v1", typeImage, layer{typeWasmLayer, module})
		r.with(func() {})
		tc.fault(r)
		s := newStore(t, nil)
		m, err := resolve(t, s, Source{URL: r.host() + "/a:v1"})
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %+v, %v; want %q", tc.why, m, err, tc.want)
		}
		if left := files(t, s); len(left) > 0 {
			t.Errorf("%s: the store has %q", tc.why, left)
		}
	}
}

// A module that is bad is fetched once, and the same one of the same manifest not again.
func TestBadModuleIsFetchedOnce(t *testing.T) {
	r := newRegistry(t, false)
	r.push("v1", typeImage, layer{typeWasmLayer, []byte("nothing")})
	s := newStore(t, nil)
	for range 3 {
		if _, err := resolve(t, s, Source{URL: r.host() + "/a:v1"}); err == nil {
			t.Fatal("no error")
		}
	}
	if n := r.requests("blobs"); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
	r.push("v1", typeImage, layer{typeWasmLayer, sample(1)})
	if _, err := resolve(t, s, Source{URL: r.host() + "/a:v1"}); err != nil {
		t.Errorf("the repaired one: %v", err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"layers":[{"mediaType":"application/wasm","digest":"sha256:` + sum(nil) + `","size":1}]}`))
	f.Add([]byte(`{"manifests":[{"mediaType":"` + typeImage + `","platform":{"os":"linux"}}]}`))
	f.Add([]byte(`{"layers":[{"mediaType":"` + typeLayerGzip + `"}],"manifests":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		if l, err := m.layer(); err == nil && (l.Digest.Validate() != nil || l.Size < 0) {
			t.Errorf("%+v", l)
		}
		if i, err := m.choose(); err == nil && i.Digest.Validate() != nil {
			t.Errorf("%+v", i)
		}
	})
}
