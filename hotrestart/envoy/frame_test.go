package envoy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// header begins a message of n bytes.
func header(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// datagrams cuts a frame as it is sent.
func datagrams(frame []byte) [][]byte {
	return slices.Collect(slices.Chunk(frame, datagramSize))
}

func TestFrames(t *testing.T) {
	var a assembler
	for _, size := range []int{0, 1, datagramSize - 8, datagramSize - 7, datagramSize, 3*datagramSize - 8, 100_000, maxMessage} {
		want := bytes.Repeat([]byte{0xa5}, size)
		parts := datagrams(appendFrame(want))
		for i, part := range parts {
			got, done, err := a.add(part)
			if last := i == len(parts)-1; done != last || err != nil {
				t.Fatalf("size %d, datagram %d of %d: done %v, %v", size, i, len(parts), done, err)
			} else if last && !bytes.Equal(got, want) {
				t.Errorf("size %d: got %d bytes", size, len(got))
			}
		}
	}
}

// TestBrokenFrames: whatever came, the next message is read.
func TestBrokenFrames(t *testing.T) {
	for name, tc := range map[string]struct {
		datagrams [][]byte
		want      error
	}{
		"empty":                   {[][]byte{{}}, errMisaligned},
		"shorter than its length": {[][]byte{{0, 0, 0}}, errMisaligned},
		"longer than it says":     {[][]byte{append(header(1), "ab"...)}, errMisaligned},
		"runs into the next":      {[][]byte{append(header(3), "a"...), []byte("bcd")}, errMisaligned},
		"too long for anybody":    {[][]byte{header(1 << 63)}, errTooLong},
		"too long for us":         {datagrams(append(header(maxMessage+1), make([]byte, maxMessage+1)...)), errTooLong},
	} {
		var a assembler
		for i, d := range tc.datagrams {
			_, done, err := a.add(d)
			if last := i == len(tc.datagrams)-1; done != last || (last && !errors.Is(err, tc.want)) {
				t.Fatalf("%s, datagram %d: done %v, %v", name, i, done, err)
			}
			if cap(a.message) > 2*maxMessage {
				t.Errorf("%s: %d bytes are held", name, cap(a.message))
			}
		}
		if got, done, err := a.add(appendFrame([]byte("next"))); string(got) != "next" || !done || err != nil {
			t.Errorf("%s: the next message is %q, %v, %v", name, got, done, err)
		}
	}
}

func FuzzEnvoyFrames(f *testing.F) {
	f.Add(appendFrame([]byte("abc")), uint16(4))
	f.Add(append(header(20), make([]byte, 20)...), uint16(9))
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		var a assembler
		total := 0
		for part := range slices.Chunk(stream, int(size)+1) {
			message, done, err := a.add(part)
			if !done && err != nil {
				t.Fatalf("in the middle of a message: %v", err)
			}
			if total += len(message); total > len(stream) {
				t.Fatalf("%d bytes of messages from %d", total, len(stream))
			}
		}
	})
}
