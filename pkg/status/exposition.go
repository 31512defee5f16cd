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

// acceptsGzip reports whether the client asks for gzip (RFC 9110, 12.5.3).
func acceptsGzip(h http.Header) bool {
	for _, value := range h.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			name, params, _ := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				continue
			}
			weight, isWeight := strings.CutPrefix(strings.TrimSpace(params), "q=")
			q, err := strconv.ParseFloat(weight, 64)
			return !isWeight || (err == nil && q > 0)
		}
	}
	return false
}

// output is the body of a merged answer: buffered, and compressed where that
// was asked for.
type output struct {
	*bufio.Writer
	gzip *gzip.Writer // nil: not compressed
}

// newOutput sets the headers that go with the encoding.
func newOutput(w http.ResponseWriter, r *http.Request) *output {
	w.Header().Add("Vary", "Accept-Encoding")
	if !acceptsGzip(r.Header) {
		return &output{Writer: bufio.NewWriter(w)}
	}
	w.Header().Set("Content-Encoding", "gzip")
	// Metrics are so repetitive that the fastest level makes them ten times
	// smaller; the others cost several times the CPU and the memory.
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // an error is about the level
	return &output{Writer: bufio.NewWriter(z), gzip: z}
}

// close writes out what is buffered. An error is the client's, which is gone.
func (o *output) close() error {
	err := o.Flush()
	if o.gzip != nil {
		err = errors.Join(err, o.gzip.Close())
	}
	return err
}
