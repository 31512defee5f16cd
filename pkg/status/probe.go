package status

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// appProbes carries out the application's probes and hooks on the kubelet's
// behalf: the kubelet is outside of the mesh, and could not reach an
// application behind mutual TLS.
type appProbes struct {
	probers map[string]*prober
	dest    destination
	client  *http.Client
	log     *slog.Logger
}

func newAppProbes(c *Config, dest destination) (*appProbes, error) {
	probers, err := parseProbers(c.AppProbers)
	if err != nil {
		return nil, err
	}
	return &appProbes{probers: probers, dest: dest, client: probeClient(dest, c.HTTP2Probing, c.Compliance), log: c.Log}, nil
}

// ServeHTTP implements [http.Handler]: 400 for a path without a probe, the
// application's status for an HTTP probe, 200 or 500 for the others.
func (a *appProbes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := a.probers[r.URL.Path]
	if !ok {
		http.Error(w, "app prober config does not exists for "+r.URL.Path, http.StatusBadRequest)
		return
	}
	// The request's context ends when the kubelet gives up.
	ctx := r.Context()
	if t := p.timeout(); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	var err error
	switch {
	case p.HTTPGet != nil:
		err = a.http(ctx, w, r, p.HTTPGet)
	case p.TCPSocket != nil:
		err = a.tcp(ctx, a.dest.hostPort(uint16(p.TCPSocket.Port)))
	default:
		err = a.grpc(ctx, r.UserAgent(), p.GRPC)
	}
	if err != nil {
		a.log.Debug("probe of the application failed", "path", r.URL.Path, "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// tcp succeeds when addr accepts a connection.
func (a *appProbes) tcp(ctx context.Context, addr string) error {
	conn, err := a.dest.dial(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("probe TCP of the application: %w", err)
	}
	if err := conn.Close(); err != nil {
		a.log.Debug("close the connection of a TCP probe", "error", err)
	}
	return nil
}

// grpc succeeds when grpc.health.v1.Health/Check says SERVING.
func (a *appProbes) grpc(ctx context.Context, userAgent string, g *grpcCheck) error {
	addr := a.dest.hostPort(uint16(g.Port))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithUserAgent(userAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return a.dest.dial(ctx, "tcp", addr)
		}))
	if err != nil {
		return fmt.Errorf("probe gRPC at %s: %w", addr, err)
	}
	defer conn.Close() // nothing is left to be sent
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: g.Service})
	if err != nil {
		return fmt.Errorf("probe gRPC at %s, service %q: %w", addr, g.Service, err)
	}
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("probe gRPC at %s, service %q: it is %s", addr, g.Service, resp.GetStatus())
	}
	return nil
}
