package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// operations are a JSON patch (RFC 6902) in the making.
type operations struct {
	text []byte
	err  error
}

// bytes are the patch, nil if it is empty.
func (o *operations) bytes() ([]byte, error) {
	if o.err != nil || o.text == nil {
		return nil, o.err
	}
	return append(o.text, ']'), nil
}

func (o *operations) begin(op, path string) {
	separator := byte(',')
	if o.text == nil {
		const usual = 8 << 10 // of a pod with one slot
		separator, o.text = '[', make([]byte, 0, usual)
	}
	o.text = append(o.text, separator)
	o.text = append(o.text, `{"op":"`...)
	o.text = append(o.text, op...)
	o.text = append(o.text, `","path":`...)
	o.value(path)
}

func (o *operations) value(v any) {
	text, raw := v.(json.RawMessage)
	if !raw {
		var err error
		if text, err = json.Marshal(v); err != nil {
			o.err = fmt.Errorf("write a patch: %w", err)
		}
	}
	o.text = append(o.text, text...)
}

func (o *operations) put(op, path string, v any) {
	o.begin(op, path)
	o.text = append(o.text, `,"value":`...)
	o.value(v)
	o.text = append(o.text, '}')
}

func (o *operations) add(path string, v any)     { o.put("add", path, v) }
func (o *operations) replace(path string, v any) { o.put("replace", path, v) }

func (o *operations) remove(path string) {
	o.begin("remove", path)
	o.text = append(o.text, '}')
}

func (o *operations) move(from, path string) {
	o.begin("move", path)
	o.text = append(o.text, `,"from":`...)
	o.value(from)
	o.text = append(o.text, '}')
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

// pointer is a path of names and indices (RFC 6901).
func pointer(parts ...any) string {
	var b strings.Builder
	for _, part := range parts {
		b.WriteByte('/')
		switch part := part.(type) {
		case int:
			b.WriteString(strconv.Itoa(part))
		case string:
			b.WriteString(escape.Replace(part))
		}
	}
	return b.String()
}

// element is one of a list as it is to be: one that is there, or a new value.
type element struct {
	at    int // where it is now; absent for a new one
	value any
}

const absent = -1

// list makes a list of length n into want: what is not wanted goes, what is in the wrong place moves, what is new is added.
func (o *operations) list(path string, n int, want []element) {
	if n == 0 && len(want) > 0 { // there may be no list
		values := make([]any, len(want))
		for i, e := range want {
			values[i] = e.value
		}
		o.add(path, values)
		return
	}
	if n > 0 && len(want) == 0 {
		o.remove(path)
		return
	}
	var now []int
	for at := range n {
		now = append(now, at)
	}
	for at := n - 1; at >= 0; at-- {
		if !slices.ContainsFunc(want, func(e element) bool { return e.at == at }) {
			o.remove(path + "/" + strconv.Itoa(at))
			now = slices.Delete(now, at, at+1)
		}
	}
	for i, e := range want {
		switch {
		case e.at == absent:
			o.add(path+"/"+strconv.Itoa(i), e.value)
			now = slices.Insert(now, i, absent)
		case now[i] != e.at:
			from := slices.Index(now, e.at)
			o.move(path+"/"+strconv.Itoa(from), path+"/"+strconv.Itoa(i))
			now = slices.Insert(slices.Delete(now, from, from+1), i, e.at)
		}
	}
}

// fields makes a map of strings into want.
func (o *operations) fields(path string, now, want map[string]string) {
	if len(now) == 0 { // there may be no map
		if len(want) > 0 {
			o.add(path, want)
		}
		return
	}
	if len(want) == 0 {
		o.remove(path)
		return
	}
	for _, key := range sortedKeys(now) {
		if _, stays := want[key]; !stays {
			o.remove(path + pointer(key))
		}
	}
	for _, key := range sortedKeys(want) {
		if v, is := now[key]; !is {
			o.add(path+pointer(key), want[key])
		} else if v != want[key] {
			o.replace(path+pointer(key), want[key])
		}
	}
}
