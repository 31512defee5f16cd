package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// plainTime is how long the same question without EDNS may take: the server has just answered.
const plainTime = time.Second

var errTruncated = errors.New("answer truncated over TCP")

// asker is what all tries have in common.
type asker struct {
	now     func() time.Time
	mark    uint32    // of the sockets to upstreams; 0: none
	buffers sync.Pool // of *[udpBuffer]byte
}

// try is one question to one server: over UDP and, where the answer is cut, over
// TCP; without EDNS where the server refuses that.
type try struct {
	a     *asker
	u     *server
	q     *wire.Query
	via   *Transport
	tcp   bool // and not UDP first
	edns  bool
	began time.Time // by the injected clock: for the records
	sent  time.Time // by the real one: for deadlines
	limit time.Time // when it is given up

	cancel  context.CancelFunc // ends it; set once somebody listens
	watched bool               // it goes on when the query is over

	out   *datagram // the first question, where that is on its way
	reply []byte    // to the first question, where that has come
	cut   bool      // the last answer over UDP was
}

// begin sends t's question. again says that its server has been asked before.
func (a *asker) begin(t *try, again bool) (err error) {
	t.a, t.began, t.sent = a, a.now(), time.Now()
	t.edns = t.u.edns(t.began, again)
	t.u.begin(t.began)
	if !t.tcp {
		t.out, err = t.send(t.sent)
	}
	return err
}

func (t *try) target() target { return target{t.u.addr, t.a.mark} }

// send sends the question over UDP; close ends that. It is noted first, for it
// may be back at once.
func (t *try) send(now time.Time) (*datagram, error) {
	request := wire.NewRequest(t.q, t.edns)
	id := t.via.sent.add(request, t.q)
	d, err := t.via.sockets.ask(t.target(), request, now)
	if err != nil {
		t.via.sent.remove(id)
	}
	return d, err
}

func (t *try) close(d *datagram, answered bool) {
	t.via.sent.remove(binary.BigEndian.Uint16(d.request))
	t.via.sockets.done(d, answered)
}

// soon waits for the answer a short time: nearly always that is enough, and
// costs no goroutine. An answer that is not the last word, cut or to be had without EDNS
// only, is left to finish. done says that there is no more to be done.
func (t *try) soon(ctx context.Context, until time.Time) (msg []byte, done bool, err error) {
	if ctx.Err() != nil { // when it ends later, so does the wait: see Transport.Open
		until = atOnce()
	}
	out := t.out
	buf := t.a.buffers.Get().(*[udpBuffer]byte)
	defer t.a.buffers.Put(buf)
	reply, err := out.receive(buf[:], until)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, false, nil
	}
	t.out = nil
	t.close(out, err == nil)
	if err != nil {
		return nil, true, err
	}
	if msg, err = wire.Canonical(reply, t.q); wire.FlagsOf(reply)&wire.FlagTC != 0 || !t.accept(msg, err) {
		t.reply = bytes.Clone(reply)
		return nil, false, nil
	}
	return msg, true, err
}

// finish does what is left, within ctx, which ends at the try's limit.
func (t *try) finish(ctx context.Context) ([]byte, error) {
	reply, err := t.ask(ctx)
	if err != nil && !t.cut {
		return nil, err
	}
	var msg []byte
	if err == nil {
		msg, err = wire.Canonical(reply, t.q)
	}
	if t.accept(msg, err) {
		return msg, err
	}
	return t.plainly(ctx, msg, err)
}

func (t *try) ask(ctx context.Context) (reply []byte, err error) {
	if !t.tcp {
		reply, err = t.overUDP(ctx)
		if t.cut = err == nil && wire.FlagsOf(reply)&wire.FlagTC != 0; !t.cut {
			return reply, err
		}
	}
	request := wire.NewRequest(t.q, t.edns)
	id := t.via.sent.add(request, t.q)
	defer t.via.sent.remove(id)
	reply, err = t.via.streams.ask(ctx, &t.via.tasks, t.target(), request)
	if err == nil && wire.FlagsOf(reply)&wire.FlagTC != 0 {
		err = fmt.Errorf("ask %s: %w", t.u.addr, errTruncated)
	}
	return reply, err
}

// overUDP waits for the answer to the question that is on its way, if there is
// one, or asks. A reply that came earlier is taken first.
func (t *try) overUDP(ctx context.Context) ([]byte, error) {
	if reply := t.reply; reply != nil {
		t.reply = nil
		return reply, nil
	}
	out := t.out
	t.out = nil
	if out == nil {
		var err error
		if out, err = t.send(time.Now()); err != nil {
			return nil, err
		}
	}
	defer t.close(out, false)
	defer context.AfterFunc(ctx, func() { out.SetReadDeadline(atOnce()) })()
	return out.receive(make([]byte, udpBuffer), t.limit)
}

// abandon gives up a question that has no answer.
func (t *try) abandon() {
	if t.out != nil {
		t.close(t.out, false)
		t.out = nil
	}
}

// accept says what becomes of an answer, as Canonical has it: it is the last word, or
// the question is worth to be asked without EDNS.
func (t *try) accept(msg []byte, err error) (final bool) {
	if err != nil {
		return !t.edns || t.u.speaks(t.a.now())
	}
	switch wire.RcodeOf(msg) {
	case wire.RcodeSuccess, wire.RcodeNXDomain:
		t.u.learn(t.a.now(), t.edns)
		return true
	case wire.RcodeFormErr, wire.RcodeNotImp:
		return !t.edns
	}
	return !t.edns || t.u.speaks(t.a.now())
}

// plainly asks without EDNS. Where that gets no better answer, the one that was there counts.
func (t *try) plainly(ctx context.Context, msg []byte, err error) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, plainTime)
	defer cancel()
	t.edns = false
	reply, failed := t.ask(ctx)
	if failed != nil {
		return msg, err
	}
	plain, failed := wire.Canonical(reply, t.q)
	if failed != nil {
		return msg, err
	}
	t.accept(plain, nil)
	return plain, nil
}
