package agent

import (
	"cmp"
	"log/slog"
	"net"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/status"
)

// sockets are all that the agent itself listens on.
type sockets struct {
	status, probe, admin []net.Listener
	dnsUDP               []*net.UDPConn
	dnsTCP               []*net.TCPListener
	xds, control         net.Listener
}

// bindSockets binds everything or nothing.
func bindSockets(cfg *config.Config, g *generation, log *slog.Logger) (_ *sockets, err error) {
	s := &sockets{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	statusPort := cmp.Or(cfg.StatusPort, cfg.ReadyPort) // 0: what the kubelet asks is all that is served
	if s.status, err = status.Listen(status.Socket{Port: statusPort, Use: "the status server", Setting: "--statusPort"}); err != nil {
		return nil, err
	}
	if cfg.ReadyPort != statusPort {
		if s.probe, err = status.Listen(status.Socket{Port: cfg.ReadyPort, Use: "the kubelet's readiness probe", Setting: "ENVOY_STATUS_PORT"}); err != nil {
			return nil, err
		}
	}
	if s.admin, err = status.Listen(status.Socket{Port: cfg.AdminPort, Loopback: true, Use: "Envoy's admin API", Setting: "--proxyAdminPort"}); err != nil {
		return nil, err
	}
	if cfg.DNSCapture {
		if s.dnsUDP, s.dnsTCP, err = dnsproxy.Listen(cfg.DNSAddrs); err != nil {
			return nil, err
		}
	}
	if s.xds, err = g.listenXDS(); err != nil {
		return nil, err
	}
	s.control, err = listenControl()
	return s, err
}

// close closes what is still open; a server that took a socket has closed it before.
func (s *sockets) close() {
	for _, group := range [][]net.Listener{s.status, s.probe, s.admin, {s.xds, s.control}} {
		for _, l := range group {
			if l != nil {
				l.Close()
			}
		}
	}
	for _, c := range s.dnsUDP {
		c.Close()
	}
	for _, l := range s.dnsTCP {
		l.Close()
	}
}
