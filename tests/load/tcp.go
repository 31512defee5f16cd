package load

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// message is what a stream sends and wants back: its number, so that an echo of another one is
// noticed, and filling.
type message struct {
	worker     int
	number     uint64
	text, echo []byte
}

func newMessage(f Flow, worker int) message {
	return message{worker: worker, text: bytes.Repeat([]byte{'.'}, f.Size), echo: make([]byte, f.Size)}
}

// next is the message to send now; the buffer is used again.
func (m *message) next() []byte {
	m.number++
	copy(m.text, fmt.Appendf(nil, "%08x %016x\n", m.worker, m.number)) // 26 bytes, less than minSize
	return m.text
}

// check compares what was read into echo with what next returned.
func (m *message) check() error {
	if !bytes.Equal(m.text, m.echo) {
		return wrongf("sent %.40q, the echo is %.40q", m.text, m.echo)
	}
	return nil
}

// firstLife spreads the ends of the flow's streams over a life, so that they do not all come at once.
func firstLife(f Flow, worker int) time.Duration {
	return time.Duration(f.Life) / time.Duration(f.Workers) * time.Duration(worker+1)
}

// tcpStream is a client of one long TCP connection after another.
type tcpStream struct {
	endpoint
	message message
	life    time.Duration // of the connection that is opened next; 0: for ever
	link    *link         // nil: none is open
}

func newTCPStream(e endpoint, worker int) *tcpStream {
	return &tcpStream{endpoint: e, message: newMessage(e.flow, worker), life: firstLife(e.flow, worker)}
}

func (s *tcpStream) request() error {
	if s.link != nil && s.link.expired() {
		if err := s.finish(); err != nil {
			return err
		}
	}
	if s.link == nil {
		l, err := s.dial()
		if err != nil {
			return err
		}
		if s.link = l; s.life > 0 {
			l.expires = time.Now().Add(s.life)
		}
	}
	_ = s.link.SetDeadline(time.Now().Add(s.timeout())) // on an open socket
	if _, err := s.link.Write(s.message.next()); err != nil {
		return s.cut(fmt.Errorf("send a message: %w", err))
	}
	if _, err := io.ReadFull(s.link.r, s.message.echo); err != nil {
		return s.cut(fmt.Errorf("read the echo: %w", err))
	}
	if err := s.message.check(); err != nil {
		return s.cut(err)
	}
	return nil
}

func (s *tcpStream) cut(err error) error {
	_ = s.link.Close()
	s.link, s.life = nil, time.Duration(s.flow.Life)
	return err
}

// finish half-closes the connection; the peer must then close it too, with nothing more to say.
func (s *tcpStream) finish() error {
	if s.link == nil {
		return nil
	}
	_ = s.link.SetDeadline(time.Now().Add(s.timeout()))
	if err := s.link.CloseWrite(); err != nil {
		return s.cut(fmt.Errorf("end the stream: %w", err))
	}
	if rest, err := io.ReadAll(io.LimitReader(s.link.r, maxBody)); err != nil {
		return s.cut(fmt.Errorf("end the stream: %w", err))
	} else if len(rest) > 0 {
		return s.cut(wrongf("%d bytes after the last echo", len(rest)))
	}
	s.meter.ended()
	return s.cut(nil)
}
