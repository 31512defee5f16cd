package wasm

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

const testLimit = 8 << 20

// unboxed is all of a module, as save reads it.
func unboxed(data []byte, limit int64) ([]byte, error) {
	b, err := unbox(bytes.NewReader(data), limit)
	if err != nil {
		return nil, err
	}
	module, err := io.ReadAll(b)
	if err == nil {
		err = b.finish()
	}
	return module, err
}

func TestUnbox(t *testing.T) {
	module := sample(1)
	inTar := tarred(item{name: "plugin.wasm", data: module})
	for why, data := range map[string][]byte{
		"itself":                   module,
		"gzip":                     zipped(module),
		"gzip of gzip":             zipped(zipped(module)),
		"two members of gzip":      append(zipped(module[:100]), zipped(module[100:])...),
		"tar":                      inTar,
		"tar.gz":                   zipped(inTar),
		"gzip in tar":              tarred(item{name: "plugin.wasm", data: zipped(module)}),
		"tar with directories":     tarred(item{name: "./", kind: tar.TypeDir}, item{name: "./plugin.wasm", data: module}, item{name: "licence", data: []byte("a")}),
		"tar without its last end": inTar[:len(inTar)-512],
		"tar with a long name":     tarred(item{name: strings.Repeat("a/", 200) + "b", data: []byte("c")}, item{name: "plugin.wasm", data: module}),
	} {
		if got, err := unboxed(data, testLimit); err != nil || !bytes.Equal(got, module) {
			t.Errorf("%s: %d bytes, %v", why, len(got), err)
		}
	}
}

func TestUnboxRefuses(t *testing.T) {
	module := sample(1)
	plugin := item{name: "plugin.wasm", data: module}
	large := tarred(plugin)
	copy(large[124:136], "77777777777\x00") // 8 GiB, which nobody has
	copy(large[148:156], headSum(large))
	many := make([]byte, 4<<20)
	for _, tc := range []struct {
		why   string
		data  []byte
		limit int64
		want  string
	}{
		{"three boxes", zipped(zipped(zipped(module))), testLimit, "gzip within 2 other archives"},
		{"a tar in a tar", tarred(item{name: "plugin.wasm", data: tarred(plugin)}), testLimit, "a tar within another"},
		{"twice", tarred(plugin, plugin), testLimit, "plugin.wasm twice"},
		{"twice, by another name", tarred(plugin, item{name: "./plugin.wasm", data: module}), testLimit, "plugin.wasm twice"},
		{"no module", tarred(item{name: "a/plugin.wasm", data: module}, item{name: "b"}), testLimit, "no file plugin.wasm, but a/plugin.wasm, b"},
		{"nothing", zipped(tarred()), testLimit, "begins with"},
		{"a link before it", tarred(item{name: "plugin.wasm", kind: tar.TypeSymlink}), testLimit, "neither a file nor a directory"},
		{"a hard link after it", tarred(plugin, item{name: "b", kind: tar.TypeLink}), testLimit, "neither a file nor a directory"},
		{"a device", tarred(item{name: "null", kind: tar.TypeChar}, plugin), testLimit, "neither a file nor a directory"},
		{"a FIFO", tarred(item{name: "pipe", kind: tar.TypeFifo}, plugin), testLimit, "neither a file nor a directory"},
		{"a way out", tarred(item{name: "../plugin.wasm", data: module}), testLimit, "leads out of it"},
		{"a way out, within", tarred(plugin, item{name: "a/../../b"}), testLimit, "leads out of it"},
		{"a size that nobody has", large, testLimit, "tar is broken"},
		{"a header alone", large[:512], testLimit, "tar is broken"},
		{"a header that is broken", append(append(bytes.Clone(tarred(plugin)[:148]), "xxxxxxxx"...), large[156:]...), testLimit, "tar is broken"},
		{"gzip that is cut off", zipped(module)[:200], testLimit, "gzip is broken"},
		{"gzip with a wrong sum", flipped(zipped(module), -5), testLimit, "gzip is broken"},
		{"gzip of an unknown method with a wrong head", []byte("\x1f\x8b\x08\xff"), testLimit, "gzip is broken"},
		{"too large", module, 100, "what is fetched has more than 100 bytes: ISTIO_WASM_MAX_BINARY_SIZE_BYTES"},
		{"too large behind the module", tarred(plugin, item{name: "b", data: many}), 1 << 20, "what is fetched has more than 1048576 bytes"},
		{"too large unpacked", zipped(many), 1 << 20, "unpacked it has more than 1048576 bytes"},
		{"a bomb", zipped(many), testLimit, "unpack to more than 200 times as many"},
		{"a bomb behind the module", zipped(tarred(plugin, item{name: "b", data: many})), testLimit, "unpack to more than 200 times as many"},
	} {
		module, err := unboxed(tc.data, tc.limit)
		if err == nil && tc.want == "begins with" { // it has no form of a box, and is no module
			_, err = Check(bytes.NewReader(module), int64(len(module)))
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || !isAbout(err) {
			t.Errorf("%s: %v; want %q", tc.why, err, tc.want)
		}
	}
}

// headSum is the sum of a header of tar, as the header has it.
func headSum(head []byte) string {
	total := 0
	for i, b := range head[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		total += int(b)
	}
	const digits = "01234567"
	out := []byte("000000\x00 ")
	for i := 5; i >= 0; i-- {
		out[i] = digits[total%8]
		total /= 8
	}
	return string(out)
}

func flipped(data []byte, at int) []byte {
	data[len(data)+at] ^= 1
	return data
}

// An error of the way is not one of the module.
func TestUnboxPassesErrorsOn(t *testing.T) {
	for _, data := range [][]byte{sample(1), zipped(sample(1)), tarred(item{name: "plugin.wasm", data: sample(1)})} {
		broken := io.MultiReader(bytes.NewReader(data[:200]), failing{})
		b, err := unbox(broken, testLimit)
		if err == nil {
			_, err = io.ReadAll(b)
		}
		if err == nil || isAbout(err) || !strings.Contains(err.Error(), "no route") {
			t.Errorf("%v", err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no route") }

func FuzzUnbox(f *testing.F) {
	module := sample(1)
	f.Add(module)
	f.Add(zipped(module))
	f.Add(tarred(item{name: "plugin.wasm", data: module}))
	f.Add(zipped(tarred(item{name: "./", kind: tar.TypeDir}, item{name: "plugin.wasm", data: module})))
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		if module, err := unboxed(data, limit); err == nil && len(module) > limit {
			t.Errorf("%d bytes", len(module))
		}
	})
}
