package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// hostIPPlaceholder stands for the node's address in the address of a service.
const hostIPPlaceholder = "$(HOST_IP)"

// Service is where Envoy sends something: the same fields, in the same order, as
// bootstrap.Service, to which it converts.
type Service struct {
	Host                                     string // "" is no service
	Port                                     uint16
	TLS                                      string // Istio's mode, "" is none
	Certificate, Key, CA                     string
	SNI                                      string
	SubjectAltNames                          []string
	Keepalive                                bool
	KeepaliveProbes                          uint32
	KeepaliveTimeSecs, KeepaliveIntervalSecs uint32
}

// String is the address with the mode of TLS.
func (s Service) String() string {
	if s.Host == "" {
		return ""
	}
	return strings.TrimSpace(net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) + " " + s.TLS)
}

// Tracer is where spans go.
type Tracer struct {
	Kind string // zipkin, datadog; "" is none
	Service
}

// String is the kind with the address.
func (t Tracer) String() string { return strings.TrimSpace(t.Kind + " " + t.Service.String()) }

// parseTracer reads ProxyConfig.tracing.
func parseTracer(text string) (t Tracer, err error) {
	var message meshv1alpha1.Tracing
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &message); err != nil {
		return Tracer{}, errors.New("want one tracer, as in ProxyConfig.tracing")
	}
	switch {
	case message.GetZipkin() != nil:
		t, err = tracerAt("zipkin", message.GetZipkin().GetAddress())
	case message.GetDatadog() != nil:
		t, err = tracerAt("datadog", message.GetDatadog().GetAddress())
	case message.GetTracer() != nil:
		return Tracer{Kind: unknownTracer}, nil
	}
	t.setTLS(message.GetTlsSettings())
	return t, err
}

// unknownTracer is one that Envoy does not have any more, or that Istio never gave it in its bootstrap.
const unknownTracer = "unknown"

func tracerAt(kind, address string) (Tracer, error) {
	s, err := serviceAt(address)
	return Tracer{Kind: kind, Service: s}, err
}

// parseService reads a RemoteService of Istio's API.
func parseService(text string) (Service, error) {
	var message meshv1alpha1.RemoteService
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &message); err != nil {
		return Service{}, errors.New("want address, tlsSettings and tcpKeepalive")
	}
	if message.GetAddress() == "" {
		return Service{}, nil
	}
	s, err := serviceAt(message.GetAddress())
	s.setTLS(message.GetTlsSettings())
	if k := message.GetTcpKeepalive(); k != nil {
		s.Keepalive, s.KeepaliveProbes = true, k.GetProbes()
		s.KeepaliveTimeSecs, s.KeepaliveIntervalSecs = seconds(k.GetTime()), seconds(k.GetInterval())
	}
	return s, err
}

func seconds(d *durationpb.Duration) uint32 { return uint32(max(0, d.GetSeconds())) }

// serviceAt reads host:port.
func serviceAt(address string) (Service, error) {
	if _, err := parseHostPort(address); err != nil {
		return Service{}, fmt.Errorf("address %s: %w", shown(address), err)
	}
	host, port, _ := net.SplitHostPort(address)
	n, _ := parsePort(port)
	return Service{Host: host, Port: n}, nil
}

func (s *Service) setTLS(settings *networkingv1alpha3.ClientTLSSettings) {
	if settings == nil || settings.GetMode() == networkingv1alpha3.ClientTLSSettings_DISABLE {
		return
	}
	s.TLS = settings.GetMode().String()
	s.Certificate, s.Key, s.CA = settings.GetClientCertificate(), settings.GetPrivateKey(), settings.GetCaCertificates()
	s.SNI, s.SubjectAltNames = settings.GetSni(), settings.GetSubjectAltNames()
}

// parseProbe reads a ReadinessProbe of Istio's API, and spells it as its own JSON does.
func parseProbe(text string) (string, error) {
	var message networkingv1alpha3.ReadinessProbe
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), &message); err != nil {
		return "", errors.New("want a probe, as in ProxyConfig.readinessProbe")
	}
	if proto.Size(&message) == 0 {
		return "", nil
	}
	canonical, err := protojson.Marshal(&message)
	return string(canonical), err
}

// parseBuckets reads the limits of a histogram's buckets by prefix.
func parseBuckets(text string) (map[string][]float64, error) {
	var m map[string][]float64
	err := json.Unmarshal([]byte(text), &m)
	for _, limits := range m {
		if len(limits) == 0 || limits[0] <= 0 || !slices.IsSorted(limits) {
			err = errors.New("limits")
		}
	}
	return m, remedy(err, `want rising limits by prefix, such as {"istiocustom":[1,5,10]}`)
}

// deriveServices fills in what other settings say of the services.
func (l *loader) deriveServices(c *Config) {
	for _, t := range []struct{ kind, setting, address string }{
		{"zipkin", "zipkinAddress", c.ZipkinAddress}, {"datadog", "datadogAgentAddress", c.DatadogAddress},
	} {
		if c.Tracer.Kind == "" && t.address != "" {
			c.Tracer, _ = tracerAt(t.kind, t.address) // the setting's kind has read it
			l.derived("tracing", c.Tracer)
			l.proxy["tracing"] = map[string]any{t.kind: map[string]any{"address": t.address}}
		}
	}
	if c.MetricsService.Host == "" && c.MetricsServiceAddress != "" {
		c.MetricsService, _ = serviceAt(c.MetricsServiceAddress)
		l.derived("envoyMetricsService", c.MetricsService)
	}
	for _, s := range []*Service{&c.Tracer.Service, &c.AccessLogService, &c.MetricsService} {
		if s.Host == hostIPPlaceholder && c.HostIP.IsValid() {
			s.Host = c.HostIP.String()
		}
	}
}

// overrideFiles puts the files of node metadata in place of those that a service names, as
// Istio does.
func overrideFiles(c *Config) {
	for _, s := range []*Service{&c.Tracer.Service, &c.AccessLogService, &c.MetricsService} {
		for _, f := range []struct {
			key  string
			file *string
		}{{"TLS_CLIENT_CERT_CHAIN", &s.Certificate}, {"TLS_CLIENT_KEY", &s.Key}, {"TLS_CLIENT_ROOT_CERT", &s.CA}} {
			if path, _ := c.Node.Metadata[f.key].(string); path != "" && s.TLS != "" {
				*f.file = path
			}
		}
	}
}

// checkServices refuses what a service cannot be reached by.
func (l *loader) checkServices(c *Config) {
	for _, s := range []struct {
		setting string
		service Service
	}{{"tracing", c.Tracer.Service}, {"envoyAccessLogService", c.AccessLogService}, {"envoyMetricsService", c.MetricsService}} {
		if s.service.TLS == "MUTUAL" && (s.service.Certificate == "" || s.service.Key == "") {
			l.reject(s.setting, s.service.TLS, "want tlsSettings with clientCertificate and privateKey")
		}
	}
	if c.ConfigDir != "" && c.MetricsService.TLS != "" {
		l.reject("envoyMetricsService", c.MetricsService.TLS, "want no tlsSettings with --configDir: certificates come with istiod")
	}
	if c.Tracer.Kind == unknownTracer {
		source, key := l.origin("tracing")
		l.warn(source, key, "no spans: Envoy's bootstrap has tracers for zipkin and datadog; for others use a Telemetry resource")
	}
	flush := c.StatsFlushInterval
	if flush == 0 {
		flush = envoyFlushInterval
	}
	if c.StatsEvictionInterval%flush != 0 {
		l.reject("statsEvictionInterval", c.StatsEvictionInterval.String(), fmt.Sprintf("want a multiple of statsFlushInterval, %s", flush))
	}
	if strings.Contains(c.IdentitySocketFile, "/") {
		l.reject("workloadIdentitySocketFile", c.IdentitySocketFile, "want the name of a file, not a path")
	}
}
