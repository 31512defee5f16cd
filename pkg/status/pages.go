package status

import (
	"bufio"
	"encoding/json"
	"net/http"
)

// WriteList writes what is wanted of a list as a JSON array, behind head. It holds the
// text of one element at a time, on a line of its own: a table may have 100,000 names.
func WriteList[T any](w http.ResponseWriter, head string, list []T, wanted func(T) bool) {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	defer out.Flush()
	out.WriteString(head + "[")
	separator := "\n"
	for _, v := range list {
		if !wanted(v) {
			continue
		}
		text, err := json.Marshal(v)
		if err != nil {
			panic(http.ErrAbortHandler) // the client sees that the list has no end
		}
		out.WriteString(separator)
		if _, err := out.Write(text); err != nil {
			return // the client is gone
		}
		separator = ",\n"
	}
	out.WriteString("\n]\n")
}

// WriteJSON answers with v, indented for people.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // fails when the client has gone
}
