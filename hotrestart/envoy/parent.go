package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// statsTimeout bounds what an Envoy waits for statistics, with its main thread: its admin
// API and its configuration stand still meanwhile. To relay them takes 10 ms.
const statsTimeout = time.Second

// ParentConfig is what a Parent answers from.
type ParentConfig struct {
	// Rendezvous is where the Envoy will be started, see Args.
	Rendezvous Rendezvous
	// Sockets returns a copy of the listening socket of one worker, which the Parent
	// closes; false when there is none, and Envoy then binds one. nil stands for none.
	// Sockets.CopyForEnvoy fits.
	Sockets func(address string, worker uint32) (fd int, ok bool)
	// Stats returns the statistics of the Envoy before; ctx ends within a second, and it
	// must return then. nil, or an error, makes an empty answer.
	Stats func(ctx context.Context) (StatsReply, error)
	// OnServing is called when the Envoy accepts on all its listeners and wants the Envoy
	// before it to drain. It runs between two requests: it must not block. nil is allowed.
	OnServing func()
	// StartTime is that of the first generation, which Envoy counts its
	// server.uptime_all_epochs from. Required.
	StartTime time.Time
	// Log is told what cannot be answered; nil is slog.Default.
	Log *slog.Logger
}

// Parent plays the Envoy before to one that starts, which asks for its listening sockets,
// and aborts or hangs when nobody answers. So a Parent is made before its Envoy is
// started, and runs for as long as that lives.
//
// pass_listen_socket, shutdown_admin and stats are always answered; drain_listeners,
// terminate and test_connection never, because Envoy would take an answer for that of its
// next request and abort.
type Parent struct {
	config ParentConfig
	socket *datagramSocket
	log    *slog.Logger
}

// NewParent binds the socket that an Envoy at c.Rendezvous sends to. Envoy can be
// started once it returns. Close it when that has ended.
func NewParent(c ParentConfig) (*Parent, error) {
	if err := c.Rendezvous.check(); err != nil {
		return nil, err
	}
	socket, err := bindDatagram(c.Rendezvous.parentSocket(), c.Rendezvous.envoyChildSocket())
	if err != nil {
		return nil, err
	}
	p := &Parent{config: c, socket: socket, log: c.Log}
	if p.log == nil {
		p.log = slog.Default()
	}
	return p, nil
}

// Run answers until ctx ends, and returns nil then. Let ctx live longer than Envoy,
// which hangs on a question that nobody answers. It runs once.
func (p *Parent) Run(ctx context.Context) error {
	defer p.socket.cancelled(ctx)()
	buffer := make([]byte, datagramSize)
	for {
		datagram, fd, err := p.socket.receive(buffer)
		if err == nil {
			closeDescriptor(fd) // a child has none to give
			err = p.answer(ctx, datagram)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("parent of an Envoy: %w", err)
		}
	}
}

// Close closes and removes the socket. An Envoy that is not done aborts at its next
// request.
func (p *Parent) Close() error { return p.socket.Close() }

// answer serves one request. Only what makes further requests pointless is an error.
func (p *Parent) answer(ctx context.Context, datagram []byte) error {
	r, err := decodeRequest(datagram)
	if err != nil {
		p.log.Warn("Envoy sent a hot-restart message that cannot be read", "error", err, "bytes", len(datagram))
		return p.send(marshalUnrecognized(), -1)
	}
	p.log.Debug("Envoy asks its hot-restart parent", "request", r.kind, "address", r.address, "worker", r.worker)
	switch r.kind {
	case kindListenSocket:
		return p.passSocket(r)
	case kindShutdownAdmin:
		return p.send(marshalAdminReply(p.config.StartTime), -1)
	case kindStats:
		return p.send(marshalReply(kindStats, p.stats(ctx)), -1)
	case kindDrainListeners:
		if p.config.OnServing != nil {
			p.config.OnServing()
		}
	case kindTerminate: // the agent ends the Envoy before by itself
	case kindTestConnection: // that it could be sent is what Envoy wants to know
	default:
		p.log.Warn("Envoy sent a hot-restart request that is not known", "request", r.kind)
		return p.send(marshalUnrecognized(), -1)
	}
	return nil
}

func decodeRequest(datagram []byte) (request, error) {
	message, err := singleFrame(datagram)
	if err != nil {
		return request{}, err
	}
	return parseRequest(message)
}

// passSocket answers with a socket, or with none: also when the listener is of another
// network namespace, since only those of the pod are held.
func (p *Parent) passSocket(r request) error {
	none := marshalSocketReply(-1)
	if p.config.Sockets == nil || r.namespace != "" {
		return p.send(none, -1)
	}
	fd, ok := p.config.Sockets(r.address, r.worker)
	if !ok {
		return p.send(none, -1)
	}
	defer closeDescriptor(fd)
	err := p.send(marshalSocketReply(fd), fd)
	if errors.Is(err, unix.ETOOMANYREFS) || errors.Is(err, unix.EBADF) {
		p.log.Warn("Envoy must bind a socket of its own, since ours cannot be passed", "address", r.address, "worker", r.worker, "error", err)
		return p.send(none, -1)
	}
	return err
}

// stats returns the serialized answer, which is empty when there is none in time.
func (p *Parent) stats(ctx context.Context) []byte {
	if p.config.Stats == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	s, err := p.config.Stats(ctx)
	if err != nil {
		p.log.Warn("Envoy starts without the statistics of the one before it", "error", err)
		return nil
	}
	return s.Marshal()
}

// send answers Envoy. One that has ended is no failure of the Parent's.
func (p *Parent) send(message []byte, fd int) error {
	err := p.socket.send(message, fd)
	if isGone(err) {
		p.log.Debug("Envoy ended before it was answered", "error", err)
		return nil
	}
	return err
}
