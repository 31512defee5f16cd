package iptables_test

import (
	"encoding/binary"
	"net"
	"testing"
	"time"

	"understudy.mesh/iptables"
	"understudy.mesh/tests/capture"
)

// A SYN+ACK that nobody asked for is INVALID to conntrack. The kernel resets its
// sender, which drop-invalid is there to prevent (istio#36566).
func TestInvalidPacketsAreDropped(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			for _, drop := range []bool{false, true, false} {
				c := iptables.Default()
				c.Backend, c.DropInvalid = b, drop
				apply(t, c)
				if reset := l.resetsStraySYNACK(); reset == drop {
					t.Errorf("drop-invalid %v: a stray SYN+ACK is reset: %v", drop, reset)
				}
			}
		})
	}
}

// resetsStraySYNACK sends a SYN+ACK and then a SYN from the world to closed ports of the
// pod, and reports whether the first was answered. The second always is.
func (l *lab) resetsStraySYNACK() (reset bool) {
	l.t.Helper()
	enter(l.t, l.world)
	conn, err := net.ListenPacket("ip4:tcp", "10.77.0.2")
	enter(l.t, l.pod)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(probeTimeout))
	const strayPort, nextPort, syn, ack = 7777, 7778, 2, 16
	to := &net.IPAddr{IP: net.ParseIP(capture.PodV4)}
	for _, packet := range [][]byte{tcpHeader(strayPort, syn|ack), tcpHeader(nextPort, syn)} {
		if _, err := conn.WriteTo(packet, to); err != nil {
			l.t.Fatal(err)
		}
	}
	for answer := make([]byte, 64); ; {
		if _, _, err := conn.ReadFrom(answer); err != nil {
			l.t.Fatal(err)
		}
		switch binary.BigEndian.Uint16(answer) {
		case strayPort:
			reset = true
		case nextPort:
			return reset
		}
	}
}

// tcpHeader returns a packet from the world's 10.77.0.2 to a port of the pod (RFC 9293).
func tcpHeader(port uint16, flags byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[0:], 40000)
	binary.BigEndian.PutUint16(h[2:], port)
	h[12], h[13] = 5<<4, flags // five words of header
	h[14] = 0xff               // window
	pseudo := []byte{10, 77, 0, 2, 10, 77, 0, 1, 0, 6, 0, byte(len(h))}
	var sum uint32
	for _, part := range [][]byte{pseudo, h} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[16:], ^uint16(sum))
	return h
}
