package status

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// heavyEnvoy makes up the given number of series as it is read, and measures
// the live heap on the way.
type heavyEnvoy struct {
	series, next int
	every        int
	buf          bytes.Buffer
	peak         uint64
}

func (h *heavyEnvoy) Read(p []byte) (int, error) {
	for h.buf.Len() == 0 {
		if h.next == h.series {
			return 0, io.EOF
		}
		if h.next%h.every == 0 {
			h.peak = max(h.peak, liveHeap())
		}
		fmt.Fprintf(&h.buf, "envoy_cluster_upstream_rq_total{cluster_name=\"outbound|%d||service-%d.namespace.svc.cluster.local\",response_code=\"200\"} %d\n",
			h.next%1000, h.next, h.next)
		h.next++
	}
	return h.buf.Read(p)
}

// liveHeap is what is reachable now.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// 100,000 series are 13 MB of text, of which nothing may be held (istio#32386).
func TestMergeBoundedHeap(t *testing.T) {
	const series, bound = 100_000, 4 << 20
	for _, coding := range []string{codingIdentity, codingGzip, codingZstd} {
		envoy := &heavyEnvoy{series: series, every: series / 10}
		url := run(t, withEnvoy(testConfig(t), envoy, nil))
		req, err := http.NewRequest(http.MethodGet, url+"/stats/prometheus", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", coding)
		req.Header.Set(timeoutHeader, fmt.Sprint(maxScrapeTimeout.Seconds())) // time is not what is measured
		before := liveHeap()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: maxScrapeTimeout}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body := io.Reader(resp.Body)
		switch coding {
		case codingGzip:
			body, err = gzip.NewReader(resp.Body)
		case codingZstd:
			body, err = zstd.NewReader(resp.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := 0
		for scan := bufio.NewScanner(body); scan.Scan(); {
			if strings.HasPrefix(scan.Text(), "envoy_") {
				lines++
			}
		}
		resp.Body.Close()
		if lines != series {
			t.Errorf("%s: %d series came through, want %d", coding, lines, series)
		}
		grown := int64(envoy.peak) - int64(before)
		t.Logf("%s: the live heap grew by %d KiB at most", coding, grown>>10)
		if grown > bound {
			t.Errorf("%s: the live heap grew by %d bytes, more than %d", coding, grown, bound)
		}
	}
}
