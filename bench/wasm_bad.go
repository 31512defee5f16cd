package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

// benchWasmBad has modules that are bad each in its own way: how long it takes until each is named, and what is repaired in force.
func benchWasmBad(t lab.T, s settings) []result {
	p := newWasmPod(t)
	good := proxywasm.Module{}.Bytes()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 8<<20))
	_ = z.Close()
	p.modules.PutBytes("/bomb", bomb.Bytes())
	p.modules.PutBytes("/corrupt", good[:len(good)-10])
	p.modules.PutBytes("/good", good)
	p.modules.Put("/loops", proxywasm.Module{Configure: proxywasm.Loops})
	const open = ", failStrategy: FAIL_OPEN"
	named := func(path, more string) float64 {
		p.slots.Write(t, "wasm.yaml", "")
		poll(t, func() bool { return phaseOf(p) == "" })
		began := time.Now()
		p.slots.Write(t, "wasm.yaml", wasmPlugin(path, open+more))
		poll(t, func() bool { return phaseOf(p) == "Failed" })
		return milliseconds(time.Since(began))
	}
	var times, repairs []float64
	for range s.rounds {
		for _, path := range []string{"/none", proxywasm.Private, "/corrupt", "/bomb"} {
			times = append(times, named(path, ""))
		}
		times = append(times, named("/good", ", sha256: "+strings.Repeat("ab", 32)))
		took, _ := p.load(t, proxywasm.Module{})
		repairs = append(repairs, milliseconds(took))
	}
	limit := func(name string, samples []float64, limit time.Duration) result {
		return measured(name, "ms", samples).largest().against("limit", []float64{milliseconds(limit)}).ratioAtMost(wasmSlack)
	}
	return []result{
		limit("404, 401, a cut module, a bomb, a wrong hash: document to the reason, the slowest", times, 2*time.Second),
		limit("the repair of such a document: to the first response through its module, the slowest", repairs, 5*time.Second),
		limit("a module that loops: document to the reason", []float64{named("/loops", "")}, 35*time.Second),
	}
}

// phaseOf is that of the pod's only Wasm filter, "" if there is none.
func phaseOf(p *wasmPod) string {
	var filters []struct {
		Phase string `json:"phase"`
	}
	status, body, err := p.Pod.Get(fmt.Sprintf("http://127.0.0.1:%s/debug/wasm", lab.StatusPort))
	if err != nil || status != http.StatusOK || json.Unmarshal([]byte(body), &filters) != nil || len(filters) == 0 {
		return ""
	}
	return filters[0].Phase
}
