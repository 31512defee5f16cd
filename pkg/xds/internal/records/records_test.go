package records

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

// wrote is what write has written, and what comes of it; its bodies are copies.
func wrote(t *testing.T, write func(*Writer)) (data []byte, all []Record) {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	write(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for r, err := range Read(bytes.NewReader(b.Bytes())) {
		if err != nil {
			t.Fatal(err)
		}
		r.Body = bytes.Clone(r.Body)
		all = append(all, r)
	}
	return b.Bytes(), all
}

// TestRoundTrip: what was written is read, and each body lies where the writer has said.
func TestRoundTrip(t *testing.T) {
	places := map[int64]string{}
	data, all := wrote(t, func(w *Writer) {
		w.Type("empty")
		w.Type("t")
		places[w.Resource("a", []byte("body of a"))] = "body of a"
		places[w.Resource("none", nil)] = ""
		w.Absent("gone")
		long := strings.Repeat("x", 3*bufferSize)
		places[w.Resource("long", []byte(long))] = long
		places[w.Resource("last", []byte("short"))] = "short"
	})
	want := []Record{
		{Type: "empty"}, {Type: "t"}, {Type: "t", Name: "a", Body: []byte("body of a")}, {Type: "t", Name: "none", Body: []byte{}},
		{Type: "t", Name: "gone", Absent: true}, {Type: "t", Name: "long", Body: bytes.Repeat([]byte("x"), 3*bufferSize)}, {Type: "t", Name: "last", Body: []byte("short")},
	}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("read %+v", all)
	}
	for at, body := range places {
		if got := string(data[at:][:len(body)]); got != body {
			t.Errorf("at %d there is %.20q, want %.20q", at, got, body)
		}
	}
}

// TestOtherReleases: of a release that knows more is read what is known here.
func TestOtherReleases(t *testing.T) {
	var all []Record
	unknown := []byte{3, 9<<3 | 2, 1, 'x'}
	data := bytes.Join([][]byte{unknown, {3, 1<<3 | 2, 1, 't'}, unknown, {8, 2<<3 | 2, 1, 'n', 8 << 3, 1, 3<<3 | 2, 1, 'b'}}, nil)
	for r, err := range Read(bytes.NewReader(data)) {
		if err != nil {
			t.Fatal(err)
		}
		r.Body = bytes.Clone(r.Body)
		all = append(all, r)
	}
	if want := []Record{{Type: "t"}, {Type: "t", Name: "n", Body: []byte("b")}}; !reflect.DeepEqual(all, want) {
		t.Errorf("read %+v", all)
	}
}

// TestRefuses: what is cut off, or makes no sense, is an error, which ends the reading.
func TestRefuses(t *testing.T) {
	whole, _ := wrote(t, func(w *Writer) { w.Type("t"); w.Resource("a", []byte("body")) })
	for name, data := range map[string][]byte{
		"cut off": whole[:len(whole)-1], "no length": bytes.Repeat([]byte{0xff}, 11), "half a length": {0xff}, "too long": {0xff, 0xff, 0xff, 0xff, 0x7f},
		"no message": {1, 0xff}, "no type": {2, 2<<3 | 2, 0}, "an empty type": {2, 1<<3 | 2, 0}, "no name": append([]byte{3, 1<<3 | 2, 1, 'x'}, 2, 2<<3|2, 0),
	} {
		last := error(nil)
		for r, err := range Read(bytes.NewReader(data)) {
			if last != nil {
				t.Errorf("%s: %+v, %v after an error", name, r, err)
			}
			last = err
		}
		if last == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestWriteFails: the first error is that of Flush.
func TestWriteFails(t *testing.T) {
	from, to := io.Pipe()
	failing := errors.New("no space")
	if err := from.CloseWithError(failing); err != nil {
		t.Fatal(err)
	}
	w := NewWriter(to)
	w.Type("t")
	w.Resource("a", make([]byte, 2*bufferSize))
	if err := w.Flush(); !errors.Is(err, failing) {
		t.Error(err)
	}
}

// FuzzRead: whatever is read, reading ends, and what was read is the same when it is written again.
func FuzzRead(f *testing.F) {
	f.Add([]byte{3, 1<<3 | 2, 1, 'x', 6, 2<<3 | 2, 1, 'n', 3<<3 | 2, 1, 'b', 3, 4<<3 | 2, 1, 'a'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var all []Record
		_, again := wrote(t, func(w *Writer) {
			for r, err := range Read(bytes.NewReader(data)) {
				switch {
				case err != nil:
					return
				case r.Absent:
					w.Absent(r.Name)
				case r.Name != "":
					w.Resource(r.Name, r.Body)
				default:
					w.Type(r.Type)
				}
				r.Body = append([]byte(nil), r.Body...)
				all = append(all, r)
			}
		})
		for i := range again {
			again[i].Body = append([]byte(nil), again[i].Body...)
		}
		if !reflect.DeepEqual(all, again) {
			t.Errorf("%+v, and again %+v", all, again)
		}
	})
}
