package upstream

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"sync"

	"understudy.mesh/dnsproxy/internal/wire"
)

// Transport is what queries share on their way to upstreams, and that ends with the last of
// them: an answer that one of them waits for must not be lost to another's end.
type Transport struct {
	ctx     context.Context // of every query; what they leave behind ends with it
	tasks   sync.WaitGroup  // connections, and what queries leave behind
	streams streams         // TCP connections to upstreams
	sockets sockets         // UDP sockets to upstreams
	sent    sentQuestions

	lives context.Context // of what no query waits for
	stop  context.CancelFunc
}

// Open begins the transport, whose queries end with ctx. keep says that TCP connections
// stay open for the next question.
func (t *Transport) Open(ctx context.Context, keep bool) {
	t.ctx = ctx
	t.lives, t.stop = context.WithCancel(context.Background())
	context.AfterFunc(ctx, t.sockets.end)
	t.streams.keep(keep)
}

// Go does work that end waits for.
func (t *Transport) Go(work func()) { t.tasks.Go(work) }

// Sent says whether q is a question of the transport's own that came back.
func (t *Transport) Sent(q *wire.Query) bool { return t.sent.has(q) }

// End waits until nothing of the transport is left, and has end what no query waits for. No
// query may begin any more but of connections that are among its tasks.
func (t *Transport) End() {
	t.stop()
	t.streams.keep(false)
	t.tasks.Wait()
	t.sockets.end()
}

// Leave does work that no query waits for.
func (t *Transport) Leave(work func(context.Context)) {
	t.tasks.Go(func() { work(t.ctx) })
}

// sentQuestions is what is on its way to upstreams, so that a question that
// comes back here is known for our own: where capture or a server of
// resolv.conf leads to this proxy, it arrives with the bytes that were sent.
// What passes another forwarder has another id, and is not found; it joins the
// flight of its key, and so makes no further question.
type sentQuestions struct {
	mu   sync.Mutex
	seed maphash.Seed
	ids  map[uint16]uint64 // the hash of the question
}

// add notes a request until remove is given the id.
func (s *sentQuestions) add(request []byte, q *wire.Query) (id uint16) {
	id = binary.BigEndian.Uint16(request)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids, s.seed = map[uint16]uint64{}, maphash.MakeSeed()
	}
	s.ids[id] = maphash.Bytes(s.seed, q.Name())
	return id
}

func (s *sentQuestions) remove(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// has says whether q came from here: its id, and all else that NewRequest
// chooses. Few clients send AD, DO's size and no capital; so one whose id is
// the same by chance is not taken for us.
func (s *sentQuestions) has(q *wire.Query) bool {
	size := wire.MinUDPSize
	if q.EDNS {
		size = wire.OwnUDPSize
	}
	if !q.Has(wire.FlagAD) || q.Limit != size && q.Limit != wire.MaxMessage {
		return false
	}
	if string(q.Question()[:q.LowerN]) != string(q.Name()) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hash, ok := s.ids[q.ID]
	return ok && hash == maphash.Bytes(s.seed, q.Name())
}
