package kruise

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const before = `{"kind":"SidecarSet","metadata":{"name":"a","resourceVersion":"7"},"spec":{
	"namespace":"shop","selector":{"matchLabels":{"app":"a"}},"updateStrategy":{"type":"RollingUpdate","partition":0,"maxUnavailable":1},
	"revisionHistoryLimit":10,"injectionStrategy":{},
	"containers":[{"name":"istio-proxy","image":"proxy:1","args":["proxy","sidecar"],"env":[{"name":"A","value":"1"},{"name":"B","value":"2"}],
		"terminationMessagePath":"/dev/termination-log","resources":{},"upgradeStrategy":{"upgradeType":"HotUpgrade","hotUpgradeEmptyImage":"empty:1"}}],
	"volumes":[{"name":"v","emptyDir":{}}]},"status":{"matchedPods":3}}`

func TestDiff(t *testing.T) {
	for change, want := range map[string]string{
		"":                                     "",
		`"image":"proxy:1" "image":"proxy:2"`:  "spec.containers[istio-proxy].image in place",
		`"partition":0 "partition":5`:          "spec.updateStrategy.partition in place",
		`"value":"2" "value":"3"`:              "spec.containers[istio-proxy].env[B].value",
		`,{"name":"B","value":"2"} `:           "spec.containers[istio-proxy].env[B]",
		`"proxy","sidecar" "proxy","router"`:   "spec.containers[istio-proxy].args",
		`empty:1 empty:2`:                      "spec.containers[istio-proxy].upgradeStrategy.hotUpgradeEmptyImage",
		`"app":"a" "app":"b"`:                  "spec.selector.matchLabels.app",
		`[{"name":"v","emptyDir":{}}] []`:      "spec.volumes",
		`"name":"v" "name":"w"`:                "spec.volumes[v] spec.volumes[w]",
		`"revisionHistoryLimit":10, `:          "",
		`"injectionStrategy":{}, `:             "",
		`"resources":{}, `:                     "",
		`"namespace":"shop" "namespace":"bar"`: "spec.namespace",
		`"name":"a" "name":"b"`:                "",
	} {
		old, new, _ := strings.Cut(change, " ")
		after := strings.Replace(before, old, new, 1)
		if change != "" && after == before || !json.Valid([]byte(after)) {
			t.Fatalf("%q changes nothing, or too much", change)
		}
		for name, pair := range map[string][2]string{"forth": {before, after}, "back": {after, before}} {
			differences, err := Diff([]byte(pair[0]), []byte(pair[1]))
			var got []string
			for _, d := range differences {
				text := d.Field
				if d.InPlace {
					text += " in place"
				}
				got = append(got, text)
			}
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("%q, %s: %q, %v; want %q", change, name, got, err, want)
			}
		}
	}
	if _, err := Diff([]byte("{"), []byte(before)); err == nil {
		t.Error("half an object is taken")
	}
}

func ExampleDiff() {
	differences, _ := Diff([]byte(before), []byte(strings.Replace(before, "proxy:1", "proxy:2", 1)))
	fmt.Println(differences)
	// Output: [{spec.containers[istio-proxy].image true}]
}
