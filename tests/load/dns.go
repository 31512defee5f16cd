package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// questions makes the queries of a worker and checks their answers.
type questions struct {
	asked   Flow
	qtype   uint16
	next    int
	packets [][]byte // one for each name; the ID is set for each query
	answer  [dns.MaxMsgSize]byte
}

func newQuestions(f Flow) *questions {
	q := &questions{asked: f, qtype: dns.StringToType[f.Type]}
	for _, name := range f.Names {
		packet, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), q.qtype).Pack()
		if err != nil {
			packet = nil // reported with the first query
		}
		q.packets = append(q.packets, packet)
	}
	return q
}

// query is the next query, with a new ID; the buffer is used again.
func (q *questions) query() ([]byte, error) {
	packet := q.packets[q.next%len(q.packets)]
	if packet == nil {
		return nil, fmt.Errorf("%q is no DNS name", q.asked.Names[q.next%len(q.packets)])
	}
	q.next++
	binary.BigEndian.PutUint16(packet, uint16(rand.Uint32()))
	return packet, nil
}

// answers reports whether a message is, by its ID, the answer to the query.
func answers(message, query []byte) bool {
	return len(message) >= 2 && message[0] == query[0] && message[1] == query[1]
}

// check says what is wrong with an answer.
func (q *questions) check(packet, query []byte) error {
	var m dns.Msg
	if err := m.Unpack(packet); err != nil {
		return wrongf("the answer is no DNS message: %v", err)
	}
	if m.Rcode != dns.RcodeSuccess {
		return &answerError{class: Wrong, text: "rcode " + dns.RcodeToString[m.Rcode]}
	}
	if !m.Response || len(m.Question) != 1 || m.Question[0].Qtype != q.qtype || !answers(packet, query) {
		return wrongf("the answer is to another question: %v", m.Question)
	}
	addresses := 0
	for _, record := range m.Answer {
		var text string
		switch record := record.(type) {
		case *dns.A:
			text = record.A.String()
		case *dns.AAAA:
			text = record.AAAA.String()
		default:
			continue
		}
		addresses++
		if !strings.HasPrefix(text, q.asked.Want) {
			return wrongf("%s is answered with %s, not %s", m.Question[0].Name, text, q.asked.Want)
		}
	}
	if addresses == 0 {
		return wrongf("%s is answered with no address", m.Question[0].Name)
	}
	return nil
}

// dnsUDP is a client of queries over UDP. A query is sent once: one that is lost is a failure.
type dnsUDP struct {
	endpoint
	*questions
	server netip.AddrPort
	socket *net.UDPConn // nil: none is open
}

func newDNSUDP(e endpoint) *dnsUDP {
	return &dnsUDP{endpoint: e, questions: newQuestions(e.flow), server: netip.MustParseAddrPort(e.flow.Target)} // was checked
}

func (c *dnsUDP) request() error {
	if c.socket == nil {
		// Connected, so that ICMP's port unreachable is an error of the socket.
		socket, err := new(net.Dialer).DialUDP(context.Background(), "udp", netip.AddrPort{}, c.server)
		if err != nil {
			return err
		}
		c.meter.opened()
		c.socket = socket
	}
	err := c.ask()
	if c.flow.NewSocket {
		_ = c.finish()
	}
	return err
}

func (c *dnsUDP) ask() error {
	query, err := c.query()
	if err != nil {
		return err
	}
	if err := c.socket.SetDeadline(time.Now().Add(c.timeout())); err != nil {
		return err
	}
	if _, err := c.socket.Write(query); err != nil {
		return err
	}
	for {
		n, err := c.socket.Read(c.answer[:])
		if err != nil {
			return err
		}
		// Anything else is a late answer to a query that was counted as lost.
		if answers(c.answer[:n], query) {
			return c.check(c.answer[:n], query)
		}
	}
}

func (c *dnsUDP) finish() error {
	if c.socket != nil {
		_ = c.socket.Close()
		c.socket = nil
		c.meter.ended()
	}
	return nil
}

// dnsTCP is a client of queries over TCP, one at a time on a connection.
type dnsTCP struct {
	kept
	*questions
	framed []byte
}

func newDNSTCP(e endpoint) *dnsTCP {
	c := &dnsTCP{kept: kept{endpoint: e}, questions: newQuestions(e.flow)}
	c.exchange = c.ask
	return c
}

// ask frames the query and its answer with their lengths (RFC 1035, 4.2.2). The query and its
// length go in one write (RFC 7766, 8).
func (c *dnsTCP) ask(l *link) (last bool, err error) {
	query, err := c.query()
	if err != nil {
		return false, err
	}
	c.framed = binary.BigEndian.AppendUint16(c.framed[:0], uint16(len(query)))
	c.framed = append(c.framed, query...)
	if err := l.send(c.framed); err != nil {
		return false, err
	}
	var length [2]byte
	if _, err := io.ReadFull(l.r, length[:]); err != nil {
		return true, l.incomplete(err)
	}
	answer := c.answer[:binary.BigEndian.Uint16(length[:])]
	if _, err := io.ReadFull(l.r, answer); err != nil {
		return true, l.incomplete(err)
	}
	return c.flow.NewSocket, c.check(answer, query)
}
