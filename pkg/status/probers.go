package status

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"understudy.mesh/pkg/contract"
)

// probersSource names the environment variable in errors.
const probersSource = contract.ProbersVariable

// proberPath is what the injector makes of a probe (app-health) or of a
// life-cycle hook (app-lifecycle) of a container.
var proberPath = regexp.MustCompile("^(" + contract.ProbePrefix + "|" + contract.HookPrefix + ")[^/]+/(" + contract.LivenessPath + "|" +
	contract.ReadinessPath + "|" + contract.StartupPath + "|" + contract.PreStopPath + "|" + contract.PostStartPath + ")$")

// prober is one probe as Kubernetes has it; exactly one of the first three is
// set.
type prober struct {
	HTTPGet        *httpGet   `json:"httpGet"`
	TCPSocket      *tcpSocket `json:"tcpSocket"`
	GRPC           *grpcCheck `json:"grpc"`
	TimeoutSeconds int32      `json:"timeoutSeconds"` // 0: as long as the kubelet waits
}

type httpGet struct {
	Path    string       `json:"path"`
	Port    port         `json:"port"`
	Scheme  string       `json:"scheme"` // HTTP (default) or HTTPS
	Headers []httpHeader `json:"httpHeaders"`

	target *url.URL // path and query, parsed
}

type httpHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type tcpSocket struct {
	Port port `json:"port"`
}

type grpcCheck struct {
	Port    port   `json:"port"`
	Service string `json:"service"`
}

func (p *prober) timeout() time.Duration { return time.Duration(p.TimeoutSeconds) * time.Second }

// port is a number, also where it was written as a string. The injector has
// resolved named ports.
type port uint16

// UnmarshalJSON implements [json.Unmarshaler].
func (p *port) UnmarshalJSON(b []byte) error {
	n, err := parsePort(strings.Trim(string(b), `"`))
	if err != nil {
		return fmt.Errorf("%w (named ports must be resolved)", err)
	}
	*p = port(n)
	return nil
}

// parseProbers reads the JSON map from path to probe. Empty input is no
// probes. Fields it does not know are left alone: Kubernetes adds some.
func parseProbers(data []byte) (map[string]*prober, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var probers map[string]*prober
	if err := json.Unmarshal(data, &probers); err != nil {
		return nil, fmt.Errorf("%s: want a JSON object from path to probe: %w", probersSource, err)
	}
	for _, path := range slices.Sorted(maps.Keys(probers)) {
		if !proberPath.MatchString(path) {
			return nil, fmt.Errorf("%s: key %q: want a path like /app-health/<container>/readyz (%s)", probersSource, path, proberPath)
		}
		if err := probers[path].check(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", probersSource, path, err)
		}
	}
	return probers, nil
}

// check validates one probe and fills in what is derived.
func (p *prober) check() error {
	kinds := 0
	if p != nil {
		for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
			if set {
				kinds++
			}
		}
	}
	if kinds != 1 {
		return fmt.Errorf("want exactly one of httpGet, tcpSocket and grpc, there are %d", kinds)
	}
	if p.TimeoutSeconds < 0 {
		return fmt.Errorf("timeoutSeconds %d: want 0 (no limit) or more", p.TimeoutSeconds)
	}
	switch {
	case p.HTTPGet != nil:
		return p.HTTPGet.check()
	case p.TCPSocket != nil:
		return p.TCPSocket.Port.check("tcpSocket")
	default:
		return p.GRPC.Port.check("grpc")
	}
}

func (p port) check(where string) error {
	if p == 0 {
		return fmt.Errorf("%s.port is missing: want a number from 1 to 65535", where)
	}
	return nil
}

func (h *httpGet) check() error {
	if err := h.Port.check("httpGet"); err != nil {
		return err
	}
	switch strings.ToUpper(h.Scheme) {
	case "", "HTTP":
		h.Scheme = "http"
	case "HTTPS":
		h.Scheme = "https"
	default:
		return fmt.Errorf("httpGet.scheme %q: want HTTP or HTTPS", h.Scheme)
	}
	if !strings.HasPrefix(h.Path, "/") {
		h.Path = "/" + h.Path
	}
	target, err := url.ParseRequestURI(h.Path)
	if err != nil || target.Host != "" {
		// kubelet falls back to the literal path, too.
		target = &url.URL{Path: h.Path}
	}
	h.target = target
	return nil
}
