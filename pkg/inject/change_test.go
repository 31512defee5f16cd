package inject

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/profile"
)

// TestChange compares pods that were made some way with what their template would become now.
func TestChange(t *testing.T) {
	const template = `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"i"}]}}`
	const hot = "{proxy: {image: understudy/proxy:v1}, hotUpgrade: {emptyImage: empty}}"
	yes, no := Verdict{Inject: true, Rule: "policy-on"}, Verdict{Rule: "pod-says-no"}
	env := Environment{Namespace: Namespace{Name: "shop"}}
	made := func(mesh string) string {
		return string(inject(t, []byte(template), env, layerOf(t, profile.SourceMesh, mesh)))
	}
	byURL := Environment{Namespace: env.Namespace, Variables: map[string]string{clusterVariable: "X", networkVariable: "Y"}}
	madeByURL := string(inject(t, []byte(template), byURL, layerOf(t, profile.SourceMesh, plainMesh)))
	v2 := strings.Replace(plainMesh, ":v1", ":v2", 1)
	upgraded := strings.NewReplacer(`"version.understudy.mesh/istio-proxy-2":"0"`, `"version.understudy.mesh/istio-proxy-2":"2"`,
		`"image":"empty"`, `"image":"understudy/proxy:v2"`).Replace(made(hot))
	for _, tt := range []struct {
		name, template, pod, mesh string
		verdict                   Verdict
		env                       Environment
		want                      Change
	}{
		{"the same", template, made(plainMesh), plainMesh, yes, env, NoChange},
		{"neither is", template, template, plainMesh, no, env, NoChange},
		{"not injected", template, template, plainMesh, yes, env, ChangeInject},
		{"no more", template, made(plainMesh), plainMesh, no, env, ChangeLeave},
		{"another injector's", template, foreign(template), plainMesh, yes, env, ChangeInjector},
		{"another injector's, and so it stays", template, foreign(template), plainMesh, no, env, NoChange},
		{"another injector's template", foreign(template), foreign(template), plainMesh, no, env, NoChange},
		{"another image", template, made(plainMesh), v2, yes, env, ChangeImage},
		{"another setting", template, made(plainMesh), strings.Replace(plainMesh, "image", "logLevel: debug, image", 1), yes, env, ChangeSettings},
		{"another image of istio-init", template, made(plainMesh), plainMesh + "\ninit: {image: x}", yes, env, ChangeSettings},
		{"native", template, made(plainMesh), plainMesh, yes, Environment{Namespace: env.Namespace, Native: true}, ChangeSettings},
		{"a URL without variables", template, made(plainMesh), plainMesh, yes, Environment{Namespace: env.Namespace, Variables: map[string]string{}}, NoChange},
		{"a URL with variables", template, made(plainMesh), plainMesh, yes, Environment{Namespace: env.Namespace, Variables: map[string]string{"A": "b"}}, ChangeSettings},
		{"by a URL with variables", template, madeByURL, plainMesh, yes, env, NoChange},
		{"by a URL with variables, with another setting", template, madeByURL, strings.Replace(plainMesh, "image", "logLevel: debug, image", 1), yes, env, ChangeSettings},
		{"by a URL with other variables", template, madeByURL, plainMesh, yes, Environment{Namespace: env.Namespace, Variables: map[string]string{clusterVariable: "Z"}}, ChangeSettings},
		{"rewritten to a mirror's name", template, strings.ReplaceAll(made(plainMesh), `"image":"understudy/`, `"image":"mirror/`), plainMesh, yes, env, NoChange},
		{"upgraded in place", template, upgraded, strings.Replace(hot, ":v1", ":v2", 1), yes, env, NoChange},
		{"upgraded to what it was made with", template, upgraded, hot, yes, env, NoChange},
		{"upgraded to something else", template, strings.ReplaceAll(upgraded, `"image":"understudy/proxy:v1"`, `"image":"empty"`), hot, yes, env, ChangeImage},
		{"injected by hand", made(plainMesh), made(plainMesh), v2, no, env, NoChange},
		{"injected by hand, otherwise since", made(v2), made(plainMesh), v2, no, env, ChangeImage},
	} {
		read, err := Read([]byte(tt.template))
		if err != nil {
			t.Fatal(err)
		}
		running := new(corev1.Pod)
		if err := json.Unmarshal([]byte(tt.pod), running); err != nil {
			t.Fatal(err)
		}
		got, err := read.Change(running, tt.verdict, settingsOf(t, []byte(tt.template), layerOf(t, profile.SourceMesh, tt.mesh)), tt.env)
		if got != tt.want || err != nil {
			t.Errorf("%s: %q, %v, want %q\n%s", tt.name, got, err, tt.want, tt.pod)
		}
	}
}

// foreign is a pod that Istio has injected.
func foreign(pod string) string {
	return strings.Replace(pod, `"name":"a"}`, `"name":"a","annotations":{"sidecar.istio.io/status":"{\"revision\":\"default\"}"}}`, 1)
}
