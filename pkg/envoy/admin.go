package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	// maxStatLine bounds a line of /stats. A text readout may be long; a counter's name
	// holds at most a few cluster names of 60 KiB each at the very worst.
	maxStatLine = 256 << 10
	// adminTimeout bounds every request of ours (not what is relayed): the admin runs on
	// Envoy's main thread, which a large update keeps busy. It is Istio's.
	adminTimeout = 3 * time.Second
	// maxAdminReply bounds what is read of a reply: 4 MiB is about 50,000 statistics,
	// a thousand times what our filters select.
	maxAdminReply = 4 << 20
	// maxAdminError is how much of the body of a failed request is quoted.
	maxAdminError = 200
	// maxIdleConns and idleTimeout keep a connection between polls of readiness, and
	// none after.
	maxIdleConns = 2
	idleTimeout  = 10 * time.Second
)

// Admin is a client of the admin API of one Envoy, on a Unix socket. It is safe for
// concurrent use.
type Admin struct {
	path      string
	transport *http.Transport
	timeout   time.Duration // of every request but those of Open, Answers and Relay
}

// NewAdmin returns a client for the socket at path, which need not be there yet.
func NewAdmin(path string) *Admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Admin{path: path, timeout: adminTimeout, transport: &http.Transport{
		DialContext: dial,
		// Compression on a local socket only costs, and a relayed reply must stay as it is.
		DisableCompression: true,
		MaxIdleConns:       maxIdleConns,
		IdleConnTimeout:    idleTimeout,
	}}
}

// Close closes the connections that are kept idle. The client can still be used.
func (a *Admin) Close() { a.transport.CloseIdleConnections() }

// DrainOptions select what POST /drain_listeners does.
type DrainOptions struct {
	// InboundOnly leaves listeners alone whose traffic direction is not INBOUND.
	InboundOnly bool
	// Graceful asks clients to go away first (connection: close, GOAWAY), and closes
	// the listeners after the drain time. Without it they close at once.
	Graceful bool
	// SkipExit keeps Envoy running, and its listeners open, after a graceful drain.
	SkipExit bool
}

// Drain asks Envoy to drain its listeners, and returns once it has begun to.
func (a *Admin) Drain(ctx context.Context, o DrainOptions) error {
	var query []string
	if o.InboundOnly {
		query = append(query, "inboundonly")
	}
	if o.Graceful {
		query = append(query, "graceful")
	}
	if o.SkipExit {
		query = append(query, "skip_exit")
	}
	path := "/drain_listeners"
	if len(query) > 0 {
		path += "?" + strings.Join(query, "&")
	}
	return a.do(ctx, http.MethodPost, path, func(io.Reader) error { return nil })
}

// stats gives the counters and gauges whose whole names match filter, an RE2
// expression, and that were written to since Envoy's start; options of the query, each
// with its "&", narrow the search. Histograms and texts are left out. Only what the
// bootstrap's stats matcher keeps can be asked for.
func (a *Admin) stats(ctx context.Context, options, filter string) (map[string]uint64, error) {
	var stats map[string]uint64
	err := a.do(ctx, http.MethodGet, "/stats?usedonly&"+options+"filter="+url.QueryEscape(filter), func(body io.Reader) (err error) {
		stats, err = parseStats(body)
		return err
	})
	return stats, err
}

// gauge is one of Envoy's own gauges, of which there is one: its name, and that in the form for Prometheus.
type gauge struct{ name, prometheus string }

// gauges gives the values of gauges by their names. Envoy finds them in the form for Prometheus among all that its bootstrap's stats matcher
// keeps; in the form that stats reads it looks through the scopes of all clusters and listeners for them, which takes its main thread tens of
// milliseconds in a large mesh. That form is asked where the other one lacks a gauge: a tag of the user's may have another name of it.
func (a *Admin) gauges(ctx context.Context, wanted ...gauge) (map[string]uint64, error) {
	names := make([]string, len(wanted))
	for i, g := range wanted {
		names[i] = regexp.QuoteMeta(g.name)
	}
	filter := "^(" + strings.Join(names, "|") + ")$"
	var samples map[string]uint64
	err := a.do(ctx, http.MethodGet, "/stats/prometheus?type=Gauges&filter="+url.QueryEscape(filter), func(body io.Reader) (err error) {
		samples, err = parseSamples(body)
		return err
	})
	if err != nil {
		return nil, err
	}
	values := make(map[string]uint64, len(wanted))
	for _, g := range wanted {
		v, has := samples[g.prometheus]
		if !has {
			return a.stats(ctx, "type=Gauges&", filter)
		}
		values[g.name] = v
	}
	return values, nil
}

// Version gives Envoy's version from /server_info, in the form
// "<commit>/<version>/<state of the tree>/<build>/<TLS library>".
func (a *Admin) Version(ctx context.Context) (string, error) {
	var info struct {
		Version string `json:"version"`
	}
	err := a.do(ctx, http.MethodGet, "/server_info", func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&info)
	})
	return info.Version, err
}

// do makes one request and hands the reply's body, cut at maxAdminReply, to read.
func (a *Admin) do(ctx context.Context, method, path string, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.request(ctx, method, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end, or given up
	body := &io.LimitedReader{R: resp.Body, N: maxAdminReply}
	err = refusal(resp)
	if err == nil {
		err = read(body)
	}
	if err != nil {
		return a.failed(method, path, err)
	}
	// What is left unread would cost the connection.
	_, _ = io.Copy(io.Discard, body)
	if body.N == 0 {
		return a.failed(method, path, fmt.Errorf("the reply has more than %d bytes: use a narrower filter", maxAdminReply))
	}
	return nil
}

// request makes one request, whose time only ctx bounds; the caller closes the reply's body.
func (a *Admin) request(ctx context.Context, method, path string) (*http.Response, error) {
	// The host means nothing on a Unix socket, but HTTP/1.1 wants one.
	req, err := http.NewRequestWithContext(ctx, method, "http://"+adminHost+path, nil)
	if err != nil {
		return nil, a.failed(method, path, err)
	}
	resp, err := a.transport.RoundTrip(req)
	if err != nil {
		return nil, a.failed(method, path, err)
	}
	return resp, nil
}

func (a *Admin) failed(method, path string, err error) error {
	return fmt.Errorf("ask Envoy's admin on %s: %s %s: %w", a.path, method, path, err)
}

// refusal is nil for a reply with status 200, and else what it says.
func refusal(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAdminError))
	return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
}

// adminHost is the Host header of every request to the admin: the agent's callers
// write whatever they like, and Envoy should not have to care.
const adminHost = "localhost"

// Relay passes a request on to Envoy's admin, and the reply back as it comes, without
// holding more of it than one buffer: /stats of a large mesh has tens of megabytes.
// Where there is no Envoy, unanswered answers: it is called with the reason, a sentence
// for people, at most once and before anything was written.
func (a *Admin) Relay(w http.ResponseWriter, r *http.Request, unanswered func(reason string)) {
	relay := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = adminHost
			r.Out.Host = adminHost
		},
		Transport:     a.transport,
		FlushInterval: -1, // at once: some replies never end
		// A client that goes away in the middle is not worth a line.
		ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			unanswered(fmt.Sprintf("Envoy's admin on %s does not answer: %v", a.path, err))
		},
	}
	// Otherwise the server closes the request's body when the reply begins, and the
	// transport, which may still look for the body's end, gives the connection up. A
	// writer that cannot do it has no such server behind it.
	_ = http.NewResponseController(w).EnableFullDuplex()
	relay.ServeHTTP(w, r)
}

// parseSamples reads the form for Prometheus, "<name>{<labels>} <number>" a line, by name. Of what is not a whole number nothing is there.
func parseSamples(r io.Reader) (map[string]uint64, error) {
	samples := make(map[string]uint64)
	err := eachLine(r, func(line string) {
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i <= 0 {
			return
		}
		if v, err := strconv.ParseUint(line[i+1:], 10, 64); err == nil {
			name, _, _ := strings.Cut(line[:i], "{")
			samples[name] = v
		}
	})
	return samples, err
}

// parseStats reads the text form of /stats, "<name>: <number>" a line. Histograms and
// text readouts, whose values are no numbers, are left out.
func parseStats(r io.Reader) (map[string]uint64, error) {
	stats := make(map[string]uint64)
	err := eachLine(r, func(line string) {
		// Names hold ": " only in theory, addresses in them hold ":".
		i := strings.LastIndex(line, ": ")
		if i <= 0 {
			return
		}
		if v, err := strconv.ParseUint(strings.TrimSpace(line[i+2:]), 10, 64); err == nil {
			stats[line[:i]] = v
		}
	})
	return stats, err
}

// eachLine calls visit for each line.
func eachLine(r io.Reader, visit func(line string)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxStatLine)
	for lines.Scan() {
		visit(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read statistics: %w", err)
	}
	return nil
}
