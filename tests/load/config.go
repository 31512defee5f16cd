// Package load owns the traffic that proves that an upgrade loses nothing: clients that make
// requests at a given rate and count every one that fails, by the way it failed; the numbers they
// report once a second; and the trivial servers at the other end.
//
// A run is a list of flows. A flow is requests of one kind to one target, made by its own workers.
// The command cmd/understudy-load is a run as a process, for a network namespace and a uid of its
// own; it writes a [Report] a line, which [Follow] reads.
package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Kind is what a flow does for one request.
type Kind string

// The kinds. Their targets are URLs where it says GET, else addresses "host:port".
const (
	HTTP1New  Kind = "http1-new"  // GET over HTTP/1.1 on a connection of its own
	HTTP1Keep Kind = "http1-keep" // GET over HTTP/1.1 on a kept connection, one for each worker
	HTTP2     Kind = "h2"         // GET over HTTP/2 with prior knowledge, Conns connections
	H2Stream  Kind = "h2-stream"  // one message on a long HTTP/2 stream (POST), echoed; a stream for each worker
	TCPStream Kind = "tcp-stream" // one message on a long TCP connection, echoed; a connection for each worker
	DNSUDP    Kind = "dns-udp"    // one query, never repeated, on the worker's socket or on a new one
	DNSTCP    Kind = "dns-tcp"    // one query on the worker's kept connection or on a new one
	Probe     Kind = "probe"      // HTTP1New by another name, so that reports tell probes from traffic
)

var kinds = []Kind{HTTP1New, HTTP1Keep, HTTP2, H2Stream, TCPStream, DNSUDP, DNSTCP, Probe}

const (
	// A request through a proxy on one machine takes milliseconds; what takes seconds is lost.
	defaultTimeout = 5 * time.Second
	// What resolv.conf(5) resolvers wait is 5 s; an application feels 2.
	defaultDNSTimeout = 2 * time.Second
	// Enough for two of Envoy's workers to get some of each.
	defaultWorkers = 4
	defaultConns   = 2
	// A message of a stream: holds its number, and stays below one segment.
	defaultSize = 64
	minSize     = 32
	maxSize     = 1 << 20
	maxWorkers  = 10_000
)

// Flow is requests of one kind to one target.
type Flow struct {
	// Name is the flow's in reports; the kind by default. It must be unique in a run.
	Name string `json:"name,omitempty"`
	Kind Kind   `json:"kind"`
	// Target is a URL ("http://192.0.2.2:8080/path") or an address ("192.0.2.2:9000"), as the kind
	// wants it. For the DNS kinds it may be empty: the first name server of /etc/resolv.conf.
	Target string `json:"target"`
	// Connect, "host:port", is connected to instead of a URL's host, which stays the Host header.
	Connect string `json:"connect,omitempty"`
	// Rate is the requests a second of all workers together; 0: as fast as it goes.
	Rate float64 `json:"rate,omitempty"`
	// Workers make one request at a time each; 4 by default. For streams: how many there are.
	Workers int `json:"workers,omitempty"`
	// Conns is how many connections HTTP/2 kinds spread their workers over, at least (workers that
	// begin at once may open one each); 2 by default.
	Conns int `json:"conns,omitempty"`
	// Timeout is how long one request, message or opening may take; 5 s by default, DNS 2 s.
	Timeout Duration `json:"timeout,omitempty"`
	// Life is after how long a stream or kept connection is ended and opened again; 0: never.
	Life Duration `json:"life,omitempty"`
	// Pause is how long the client of a new connection takes over its first request: half of it before
	// the first byte, half of it in the middle. Only HTTP/1.1; 0: none.
	Pause Duration `json:"pause,omitempty"`
	// Size is the length of a stream's message in bytes; 64 by default.
	Size int `json:"size,omitempty"`
	// Want must be in the body of an answer, or start every address of a DNS answer ("240.240.").
	// Empty: any body, any address; but DNS must answer with at least one.
	Want string `json:"want,omitempty"`
	// Names are what DNS kinds ask for, in turn; Type is "A" (default) or "AAAA".
	Names []string `json:"names,omitempty"`
	Type  string   `json:"type,omitempty"`
	// NewSocket makes DNS kinds use a new socket, and so a new source port, for each query.
	NewSocket bool `json:"new_socket,omitempty"`
}

// Config is a run.
type Config struct {
	// Source names the run in its reports, where the reports of several are merged.
	Source string `json:"source,omitempty"`
	// Duration and Requests (of all flows together) each end the run; 0: the context does.
	Duration Duration `json:"duration,omitempty"`
	Requests uint64   `json:"requests,omitempty"`
	Flows    []Flow   `json:"flows"`
}

// Duration is a time.Duration that is text in JSON: "1m30s".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

// ReadConfig reads the JSON form of a Config. A key that it does not know is an error.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	decoder := json.NewDecoder(r)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("read the load's configuration: %w", err)
	}
	return c, nil
}

// ParseFlow reads the command line's form of a Flow: the keys of its JSON form and values without
// spaces, like "kind=http1-new target=http://192.0.2.2:8080/ rate=500". Names are joined by commas.
func ParseFlow(text string) (Flow, error) {
	var f Flow
	for _, field := range strings.Fields(text) {
		key, value, found := strings.Cut(field, "=")
		if !found {
			return Flow{}, fmt.Errorf("flow %q: %q is not key=value", text, field)
		}
		if err := f.set(key, value); err != nil {
			return Flow{}, fmt.Errorf("flow %q: %s: %w", text, key, err)
		}
	}
	return f, nil
}

func (f *Flow) set(key, value string) (err error) {
	switch key {
	case "name":
		f.Name = value
	case "kind":
		f.Kind = Kind(value)
	case "target":
		f.Target = value
	case "connect":
		f.Connect = value
	case "want":
		f.Want = value
	case "names":
		f.Names = strings.Split(value, ",")
	case "type":
		f.Type = value
	case "rate":
		f.Rate, err = strconv.ParseFloat(value, 64)
	case "workers":
		f.Workers, err = strconv.Atoi(value)
	case "conns":
		f.Conns, err = strconv.Atoi(value)
	case "size":
		f.Size, err = strconv.Atoi(value)
	case "timeout":
		err = f.Timeout.UnmarshalText([]byte(value))
	case "life":
		err = f.Life.UnmarshalText([]byte(value))
	case "pause":
		err = f.Pause.UnmarshalText([]byte(value))
	case "new_socket":
		f.NewSocket, err = strconv.ParseBool(value)
	default:
		err = errors.New("no such key")
	}
	return err
}

// complete returns the flow with its defaults filled in, or what is wrong with it.
func (f Flow) complete() (Flow, error) {
	if !slices.Contains(kinds, f.Kind) {
		return f, fmt.Errorf("flow %q: kind %q is none of %v", f.Name, f.Kind, kinds)
	}
	isDNS := f.Kind == DNSUDP || f.Kind == DNSTCP
	if f.Name == "" {
		f.Name = string(f.Kind)
	}
	setDefault(&f.Workers, defaultWorkers)
	setDefault(&f.Conns, defaultConns)
	setDefault(&f.Size, defaultSize)
	setDefault(&f.Type, "A")
	if isDNS {
		setDefault(&f.Timeout, Duration(defaultDNSTimeout))
	}
	setDefault(&f.Timeout, Duration(defaultTimeout))

	var err error
	switch {
	case f.Rate < 0 || f.Workers < 1 || f.Workers > maxWorkers || f.Conns < 1 || f.Timeout < 0 || f.Life < 0 || f.Pause < 0:
		err = errors.New("rate, workers, conns, timeout, life and pause are positive numbers")
	case f.Size < minSize || f.Size > maxSize:
		err = fmt.Errorf("size %d: give %d to %d bytes", f.Size, minSize, maxSize)
	case f.Pause > 0 && f.Kind != HTTP1New && f.Kind != HTTP1Keep:
		err = fmt.Errorf("pause: only %s and %s have one", HTTP1New, HTTP1Keep)
	case isDNS:
		err = f.completeDNS()
	case f.Kind == TCPStream:
		_, _, err = net.SplitHostPort(f.Target)
	default:
		err = f.completeURL()
	}
	if err != nil {
		return f, fmt.Errorf("flow %q: %w", f.Name, err)
	}
	return f, nil
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

func (f *Flow) completeURL() error {
	u, err := url.Parse(f.Target)
	if err != nil {
		return err
	}
	if u.Scheme != "http" || u.Hostname() == "" {
		return fmt.Errorf("target %q: give an http:// URL", f.Target)
	}
	port := u.Port()
	setDefault(&port, "80")
	setDefault(&f.Connect, net.JoinHostPort(u.Hostname(), port))
	_, _, err = net.SplitHostPort(f.Connect)
	return err
}

func (f *Flow) completeDNS() error {
	if f.Type != "A" && f.Type != "AAAA" {
		return fmt.Errorf("type %q: give A or AAAA", f.Type)
	}
	if len(f.Names) == 0 {
		return errors.New("no names to ask for")
	}
	if f.Target == "" {
		resolver, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil || len(resolver.Servers) == 0 {
			return fmt.Errorf("no target, and no name server in /etc/resolv.conf: %w", err)
		}
		f.Target = net.JoinHostPort(resolver.Servers[0], resolver.Port)
	}
	if _, err := netip.ParseAddrPort(f.Target); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	return nil
}

// complete returns the configuration with its defaults filled in, or everything wrong with it.
func (c Config) complete() (Config, error) {
	if len(c.Flows) == 0 {
		return c, errors.New("a load without flows: give at least one")
	}
	flows := make([]Flow, len(c.Flows))
	var errs []error
	for i, f := range c.Flows {
		var err error
		if flows[i], err = f.complete(); err != nil {
			errs = append(errs, err)
		} else if slices.ContainsFunc(flows[:i], func(g Flow) bool { return g.Name == flows[i].Name }) {
			errs = append(errs, fmt.Errorf("flow %q: two of this name: set name", flows[i].Name))
		}
	}
	c.Flows = flows
	return c, errors.Join(errs...)
}
