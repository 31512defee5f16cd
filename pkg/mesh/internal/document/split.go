// Package document owns the text of a configuration file: where its documents begin and end, the tree that each of them
// is, and the message that a tree says, field by field.
package document

import "bytes"

// Chunk is the text of one YAML document, before anything is known of it.
type Chunk struct {
	Text []byte // aliases the file's bytes
	Line int    // where it begins in the file, from 1
}

var (
	documentStart = []byte("---")
	documentEnd   = []byte("...")
	byteOrderMark = []byte("\xef\xbb\xbf")
)

// Split cuts a file into its documents at the lines that YAML 1.2 (9.1) calls document markers, which cannot occur
// inside a scalar. Documents that hold nothing but comments and directives are left out, so that a file may begin with
// "---". A broken document does not take its neighbours with it, which is why this is not left to the YAML parser.
func Split(data []byte) []Chunk {
	data = bytes.TrimPrefix(data, byteOrderMark)
	var chunks []Chunk
	begin, line, beginLine := 0, 0, 1
	flush := func(end int) {
		if text := data[begin:end]; !blank(text) {
			chunks = append(chunks, Chunk{Text: text, Line: beginLine})
		}
	}
	for pos := 0; pos < len(data); {
		line++
		next := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			next = pos + i + 1
		}
		switch row := data[pos:next]; {
		case isMarker(row, documentStart):
			flush(pos)
			begin, beginLine = pos+len(documentStart), line
		case isMarker(row, documentEnd):
			flush(pos)
			begin, beginLine = next, line+1
		}
		pos = next
	}
	flush(len(data))
	return chunks
}

// isMarker says whether row is marker alone or followed by white space.
func isMarker(row, marker []byte) bool {
	rest, ok := bytes.CutPrefix(row, marker)
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank says whether text has no content: white space, comments, and %YAML directives only.
func blank(text []byte) bool {
	for row := range bytes.Lines(text) {
		row = bytes.TrimSpace(row)
		if len(row) > 0 && row[0] != '#' && row[0] != '%' {
			return false
		}
	}
	return true
}
