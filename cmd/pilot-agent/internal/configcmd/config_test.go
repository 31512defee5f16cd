package configcmd

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

const changes = `[
{"time":"2026-03-01T14:03:00.0415Z","change":"added","type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"outbound|80||a.example"},
{"time":"2026-03-01T15:03:01+01:00","change":"removed","type":"type.googleapis.com/envoy.config.listener.v3.Listener","name":"10.0.0.1_\u001b80"}
]`

func TestConfigLog(t *testing.T) {
	var out bytes.Buffer
	if err := printChanges(&out, json.NewDecoder(strings.NewReader(changes))); err != nil {
		t.Fatal(err)
	}
	want := `
TIME                      CHANGE   TYPE      NAME
2026-03-01T14:03:00.041Z  added    Cluster   outbound|80||a.example
2026-03-01T14:03:01.000Z  removed  Listener  10.0.0.1_ 80
`
	if out.String() != want[1:] {
		t.Errorf("got:\n%s\nwant:%s", out.String(), want)
	}
}

// TestAnswerThatIsCutOff: it is no whole one.
func TestAnswerThatIsCutOff(t *testing.T) {
	for n := range changes {
		if err := printChanges(io.Discard, json.NewDecoder(strings.NewReader(changes[:n]))); err == nil {
			t.Fatalf("taken for whole after %d bytes", n)
		}
	}
}
