package status

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	// textFormat is the Prometheus text exposition format 0.0.4.
	textFormat = "text/plain; version=0.0.4; charset=utf-8"
	// openMetricsType is the media type of OpenMetrics 1.0.0, section 4.1.
	openMetricsType = "application/openmetrics-text"
	// openMetricsEnd is the line that ends an OpenMetrics exposition.
	openMetricsEnd = "# EOF"
	// maxLine is the longest line of an exposition that is passed on, and the
	// size of the only buffer that a source's text goes through.
	maxLine = 64 << 10
)

// errLongLine reports that a line was left out.
var errLongLine = errors.New("a line is longer than " + strconv.Itoa(maxLine) + " bytes, and was left out")

// copyLines copies whole lines, so that another source can follow whatever
// happens to this one: the last line gets its line feed, and is left out when
// the source fails in the middle of it. Blank lines go (OpenMetrics forbids
// them), as does "# EOF", which is the merger's to write. An error is the
// source's; when dst fails, its client is gone, and copying just ends.
func copyLines(dst *bufio.Writer, src io.Reader) error {
	r := bufio.NewReaderSize(src, maxLine)
	var skipped error
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			skipped = errLongLine
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			line = nil
		}
		if err != nil && err != io.EOF {
			return errors.Join(err, skipped)
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 && string(line) != openMetricsEnd {
			dst.Write(line) // a bufio.Writer's error is sticky
			if dst.WriteByte('\n') != nil {
				return nil
			}
		}
		if err == io.EOF {
			return skipped
		}
	}
}

// isOpenMetrics tells the two formats apart that can be merged, and rejects
// the one that cannot. An unknown or missing type is taken for text, which is
// what applications that set none send.
func isOpenMetrics(contentType string) (bool, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false, nil
	}
	if strings.Contains(media, "protobuf") {
		return false, fmt.Errorf("content type %q cannot be merged with text", contentType)
	}
	return media == openMetricsType, nil
}

// acceptText keeps those of the scraper's preferences that can be merged.
// Wildcards go: they would allow protobuf.
func acceptText(accept string) string {
	var keep []string
	for choice := range strings.SplitSeq(accept, ",") {
		choice = strings.TrimSpace(choice)
		media, _, _ := strings.Cut(choice, ";")
		switch strings.ToLower(strings.TrimSpace(media)) {
		case "text/plain", openMetricsType:
			keep = append(keep, choice)
		}
	}
	return cmp.Or(strings.Join(keep, ","), "text/plain;version=0.0.4")
}

// The content codings of a merged answer.
const (
	codingZstd     = "zstd" // RFC 8878
	codingGzip     = "gzip"
	codingIdentity = "identity"
)

// coding is the one that the client likes best of those there are (RFC 9110, 12.5.3); of two that it likes as much, zstd.
func coding(h http.Header) string {
	best, liked := codingIdentity, 0.0
	for _, value := range h.Values("Accept-Encoding") {
		for choice := range strings.SplitSeq(value, ",") {
			name, params, _ := strings.Cut(choice, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			if name != codingZstd && name != codingGzip {
				continue
			}
			if q := weight(params); q > liked || q == liked && q > 0 && name == codingZstd {
				best, liked = name, q
			}
		}
	}
	return best
}

// weight is how much a client wants what it names with these parameters: 1 unless it says so, 0 if it does not say so well.
func weight(params string) float64 {
	q, isWeight := strings.CutPrefix(strings.TrimSpace(params), "q=")
	if !isWeight {
		return 1
	}
	f, _ := strconv.ParseFloat(q, 64)
	return f
}

// output is the body of a merged answer: buffered, and compressed where that
// was asked for.
type output struct {
	*bufio.Writer
	to         http.ResponseWriter
	compressor compressor // nil: not compressed
}

// compressor is what both codings have in common.
type compressor interface {
	io.WriteCloser
	Flush() error
}

// newOutput sets the headers that go with the coding.
func newOutput(w http.ResponseWriter, r *http.Request) *output {
	w.Header().Add("Vary", "Accept-Encoding")
	o := &output{to: w}
	// Metrics are so repetitive that the fastest level makes them ten times
	// smaller; the others cost several times the CPU and the memory.
	// The errors are about the settings.
	switch name := coding(r.Header); name {
	case codingZstd:
		o.compressor, _ = zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(zstdWindow))
		w.Header().Set("Content-Encoding", name)
	case codingGzip:
		o.compressor, _ = gzip.NewWriterLevel(w, gzip.BestSpeed)
		w.Header().Set("Content-Encoding", name)
	default:
		o.Writer = bufio.NewWriter(w)
		return o
	}
	o.Writer = bufio.NewWriter(o.compressor)
	return o
}

// zstdWindow is how far back zstd looks for what is repeated: enough for metrics, and a small part of the 4 MiB that it takes by default.
const zstdWindow = 128 << 10

// send sends what there is so far. An error is the client's, which is gone, as in close.
func (o *output) send() error {
	err := o.Flush()
	if o.compressor != nil {
		err = errors.Join(err, o.compressor.Flush())
	}
	return errors.Join(err, http.NewResponseController(o.to).Flush())
}

// close sends the rest.
func (o *output) close() error {
	err := o.Flush()
	if o.compressor != nil {
		err = errors.Join(err, o.compressor.Close())
	}
	return errors.Join(err, http.NewResponseController(o.to).Flush())
}
