package inject

import (
	"bytes"
	"fmt"
	"testing"

	"understudy.mesh/pkg/profile"
)

// BenchmarkPatch makes the patch of a plain pod, of one with 1,000 variables, and of one that is injected.
func BenchmarkPatch(b *testing.B) {
	plain := []byte(`{"metadata":{"name":"a","labels":{"app":"a"}},"spec":{"containers":[{"name":"a","image":"i","env":[ENV],"ports":[{"containerPort":8080}],"livenessProbe":{"httpGet":{"path":"/l","port":8080}}}]}}`)
	var env bytes.Buffer
	for i := range 1000 {
		if i > 0 {
			env.WriteByte(',')
		}
		fmt.Fprintf(&env, `{"name":"VARIABLE_NUMBER_%d","value":"some value of the usual length %d"}`, i, i)
	}
	large := bytes.Replace(plain, []byte("ENV"), env.Bytes(), 1)
	plain = bytes.Replace(plain, []byte("ENV"), nil, 1)
	layer := layerOf(b, profile.SourceMesh, plainMesh)
	settings := settingsOf(b, plain, layer)
	for name, pod := range map[string][]byte{"plain": plain, "1000env": large, "again": inject(b, plain, Environment{}, layer)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := patchOf(pod, settings, Environment{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
