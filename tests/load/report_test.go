package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var compareHistograms = cmp.AllowUnexported(Histogram{})

func TestHistogram(t *testing.T) {
	var h Histogram
	for i := range 1000 {
		h.Add(time.Duration(i+1) * time.Millisecond)
	}
	for _, tt := range []struct {
		q    float64
		want time.Duration
	}{{0, time.Millisecond}, {0.5, 501 * time.Millisecond}, {0.99, 991 * time.Millisecond}, {1, time.Second}} {
		if got := h.Quantile(tt.q); got < tt.want || got > tt.want+tt.want/steps {
			t.Errorf("quantile %v = %v, want %v and at most 1/%d more", tt.q, got, tt.want, steps)
		}
	}
	if h.Count() != 1000 || h.Max() != time.Second || (Histogram{}).Quantile(0.5) != 0 {
		t.Errorf("count %d, max %v, empty %v", h.Count(), h.Max(), Histogram{}.Quantile(0.5))
	}
}

// TestHistogramBuckets demands that every latency falls into a bucket that ends at or after it, and
// not by more than 1/16.
func TestHistogramBuckets(t *testing.T) {
	last := -1
	for µs := uint64(0); µs < 1<<maxBits; µs += 1 + µs/40 {
		d := time.Duration(µs) * time.Microsecond
		b := bucketOf(d)
		if b < last || b > last+1 || b >= buckets {
			t.Fatalf("%v is in bucket %d, after %d, of %d", d, b, last, buckets)
		}
		last = b
		if bound(b) < d || bound(b) > d+d/steps {
			t.Errorf("%v is in the bucket up to %v", d, bound(b))
		}
	}
	if b := bucketOf(1 << 62); b != buckets-1 || bucketOf(-1) != 0 {
		t.Errorf("146 years are in bucket %d, of %d", b, buckets)
	}
}

func counts(ok uint64, latency time.Duration, failed map[Class]uint64) Counts {
	c := Counts{OK: ok, Failed: failed, Opened: 2 * ok, Ended: ok, Retried: 1, Skipped: 1}
	for range ok {
		c.Latency.Add(latency)
	}
	return c
}

func at(second int) time.Time { return time.Date(2030, 1, 1, 0, 0, second, 0, time.UTC) }

func twoReports() (a, b Report) {
	a = Report{Source: "outside", Time: at(5), Elapsed: 5, Interval: 1, CPU: 2, Final: true, Flows: []FlowReport{
		{Name: "in", Kind: HTTP1New, Total: counts(10, time.Millisecond, map[Class]uint64{Reset: 2}), Interval: counts(1, time.Millisecond, nil),
			Failures: []Failure{{Time: at(1), Flow: "in", Class: Reset, Text: "first"}, {Time: at(3), Flow: "in", Class: Reset, Text: "third"}}},
	}}
	b = Report{Source: "inside", Time: at(4), Elapsed: 4, Interval: 1.5, CPU: 1, Flows: []FlowReport{
		{Name: "dns", Kind: DNSUDP, Total: counts(3, time.Second, nil), Interval: counts(3, time.Second, nil)},
		{Name: "in", Kind: HTTP1New, Total: counts(30, 2*time.Millisecond, map[Class]uint64{Reset: 1, EOF: 1}), Interval: counts(2, time.Millisecond, nil),
			Failures: []Failure{{Time: at(2), Flow: "in", Class: EOF, Text: "second"}}},
	}}
	return a, b
}

func TestMerge(t *testing.T) {
	a, b := twoReports()
	merged := Report{}.Merge(a).Merge(b)
	if merged.Source != "outside+inside" || merged.Time != at(5) || merged.Elapsed != 5 || merged.Interval != 1.5 || merged.CPU != 3 || merged.Final {
		t.Errorf("merged %+v", merged)
	}
	in := merged.Flow("in")
	if in.Total.OK != 40 || in.Total.Failed[Reset] != 3 || in.Total.Failed[EOF] != 1 || in.Total.Latency.Count() != 40 || in.Interval.OK != 3 || in.Total.Opened != 80 {
		t.Errorf("flow in: %+v", in)
	}
	if in.Failures[0].Text != "first" || in.Failures[1].Text != "second" || in.Failures[2].Text != "third" {
		t.Errorf("failures %v", in.Failures)
	}
	if merged.Failures() != 4 || merged.Total().OK != 43 || merged.Last().OK != 6 {
		t.Errorf("%d failures, %d ok, %d in the interval", merged.Failures(), merged.Total().OK, merged.Last().OK)
	}
	// Neither is changed, and both are final before the sum is.
	wantA, wantB := twoReports()
	if diff := cmp.Diff([]Report{wantA, wantB}, []Report{a, b}, compareHistograms); diff != "" {
		t.Error(diff)
	}
	b.Final = true
	if !(Report{}).Merge(a).Merge(b).Final {
		t.Error("two final reports are not final together")
	}
}

func TestString(t *testing.T) {
	a, b := twoReports()
	want := "flow  kind       ok  failed              retried  opened  ended  req/s  p50 ms   p99 ms   max ms\n" +
		"in    http1-new  40  4 (reset 3, eof 1)  2        80      40     8      2.00     2.00     2.00\n" +
		"dns   dns-udp    3   0                   1        6       3      1      1000.00  1000.00  1000.00\n" +
		"all              43  4 (reset 3, eof 1)  3        86      43     9      2.05     1000.00  1000.00\n" +
		"3 requests were never made: the rate is more than this machine can do\n" +
		"00:00:01.000 in reset after 0.0 ms: first\n" +
		"00:00:02.000 in eof after 0.0 ms: second\n" +
		"00:00:03.000 in reset after 0.0 ms: third\n"
	if diff := cmp.Diff(want, a.Merge(b).String()); diff != "" {
		t.Error(diff)
	}
}

// TestFollow demands that what is written is read back, to the last bucket.
func TestFollow(t *testing.T) {
	a, b := twoReports()
	var stream bytes.Buffer
	lines := json.NewEncoder(&stream)
	for _, r := range []Report{a, b} {
		if err := lines.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	var got []Report
	for r, err := range Follow(&stream) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff([]Report{a, b}, got, compareHistograms); diff != "" {
		t.Error(diff)
	}
}

func TestFollowEndsWithAnError(t *testing.T) {
	broken := errors.New("broken")
	for name, stream := range map[string]io.Reader{
		"no JSON":     strings.NewReader("{}\npanic: oh no\n{}\n"),
		"no bucket":   strings.NewReader("{}\n" + `{"flows":[{"total":{"latency":{"buckets":[[528,1]]}}}]}` + "\n"),
		"cut off":     strings.NewReader("{}\n{\"time\""),
		"broken":      io.MultiReader(strings.NewReader("{}\n"), failingReader{broken}),
		"without end": io.MultiReader(strings.NewReader("{}\n"), &endless{}),
	} {
		good, failed := 0, 0
		for _, err := range Follow(stream) {
			if err != nil {
				failed++
			} else {
				good++
			}
		}
		if good != 1 || failed != 1 {
			t.Errorf("%s: %d reports and %d errors, want 1 and 1", name, good, failed)
		}
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

type endless struct{}

func (*endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzFollow(f *testing.F) {
	a, _ := twoReports()
	line, err := json.Marshal(a)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{"flows":[{"interval":{"latency":{"max_ms":-1,"buckets":[[0,18446744073709551615],[1,2]]}}}]}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		var sum Report
		for r, err := range Follow(bytes.NewReader(text)) {
			if err == nil {
				sum = sum.Merge(r)
			}
		}
		_ = sum.String()
	})
}

// TestPacer: latency counts from when a request was due when the one before it was slow, and a
// stall longer than a second skips what was missed.
func TestPacer(t *testing.T) {
	start := time.Now()
	ctx := t.Context()
	p := newPacer(Flow{Rate: 10, Workers: 2}, 1, start.Add(-time.Second)) // each 200 ms, from -900 ms on
	for i, want := range []time.Duration{-900, -700, -500, -300, -100} {
		got, skipped, ok := p.wait(ctx)
		if !ok || skipped != 0 || got.Sub(start) != want*time.Millisecond {
			t.Errorf("request %d counts from %v, skipped %d, ok %v; want %v ms, 0, true", i, got.Sub(start), skipped, ok, want)
		}
	}
	if got, _, ok := p.wait(ctx); !ok || got.Before(start.Add(100*time.Millisecond)) {
		t.Errorf("the next one began at %v, want 100ms or later", got.Sub(start))
	}

	p = newPacer(Flow{Rate: 10, Workers: 1}, 0, time.Now().Add(-time.Minute))
	if got, skipped, ok := p.wait(ctx); !ok || skipped < 600 || time.Since(got) > deadline {
		t.Errorf("after a minute: %d skipped, counts from %v ago", skipped, time.Since(got))
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, rate := range []float64{0, 0.001} {
		p := newPacer(Flow{Rate: rate, Workers: 1}, 0, time.Now().Add(time.Minute))
		if _, _, ok := p.wait(cancelled); ok {
			t.Errorf("rate %v: a request after the end", rate)
		}
	}
}

func TestConfig(t *testing.T) {
	want := Flow{
		Name: "vip", Kind: DNSUDP, Target: "127.0.0.1:53", Rate: 0.5, Workers: 3, Conns: 4, Timeout: Duration(time.Second), Life: Duration(time.Minute),
		Size: 99, Want: "240.240.", Names: []string{"a.example", "b.example"}, Type: "AAAA", NewSocket: true, Connect: "x:1",
	}
	got, err := ParseFlow("name=vip kind=dns-udp target=127.0.0.1:53 rate=0.5 workers=3 conns=4 timeout=1s life=1m size=99 want=240.240. names=a.example,b.example type=AAAA new_socket=true connect=x:1")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	text, err := json.Marshal(Config{Source: "s", Duration: Duration(90 * time.Second), Requests: 7, Flows: []Flow{want}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(bytes.NewReader(text))
	if diff := cmp.Diff(Config{Source: "s", Duration: Duration(90 * time.Second), Requests: 7, Flows: []Flow{want}}, c); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestBadConfig(t *testing.T) {
	for text, want := range map[string]string{
		"kind=http1-new target":                            `"target" is not key=value`,
		"kind=http1-new colour=red":                        "colour: no such key",
		"kind=http1-new rate=fast":                         `rate: strconv.ParseFloat: parsing "fast": invalid syntax`,
		"kind=http1-new pause=1":                           "pause: time: missing unit",
		"kind=http1-new life=1":                            "life: time: missing unit",
		"kind=http3":                                       `kind "http3" is none of`,
		"kind=h2 target=https://a/":                        "give an http:// URL",
		"kind=h2 target=a:1":                               "give an http:// URL",
		"kind=tcp-stream target=a":                         "missing port",
		"kind=tcp-stream target=a:1 size=31":               "size 31: give 32 to 1048576 bytes",
		"kind=tcp-stream target=a:1 rate=-1":               "positive",
		"kind=dns-udp target=127.0.0.1:53":                 "no names to ask for",
		"kind=dns-udp target=ns:53 names=a":                "target: ",
		"kind=dns-udp target=127.0.0.1:53 names=a type=MX": `type "MX": give A or AAAA`,
	} {
		f, err := ParseFlow(text)
		if err == nil {
			_, err = Run(t.Context(), Config{Flows: []Flow{f}}, nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
	same := Flow{Kind: TCPStream, Target: "127.0.0.1:1"}
	for _, c := range []Config{{}, {Flows: []Flow{same, same}}} {
		if _, err := Run(t.Context(), c, nil); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
	if _, err := ReadConfig(strings.NewReader(`{"streams": []}`)); err == nil {
		t.Error("an unknown key of the configuration: no error")
	}
}
