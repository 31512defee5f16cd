package istiod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"understudy.mesh/pkg/istiod/internal/extension"
)

// State is how a check has ended.
type State string

// States of a check. One that could not be made, because another failed or does not apply, is skipped.
const (
	StateOK      State = "ok"
	StateWarning State = "warning"
	StateFailed  State = "failed"
	StateSkipped State = "skipped"
)

// Finding is what one check has found.
type Finding struct {
	Check  string `json:"check"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Extensions are those that the configuration needs, by the types of theirs, sorted: of the push.
	Extensions []string `json:"extensions,omitempty"`
}

// Examination is what of a pod's way to istiod is checked.
type Examination struct {
	Dial Dial
	// CA is how the certificate authority is reached, and Sign has it sign a certificate, once, and says what it got; nil where the
	// pod has its certificate from files.
	CA   Dial
	Sign func(context.Context) (string, error)
	// Node is who the pod is; a check opens a stream in its name, as its agent does.
	Node *corev3.Node
	// ServerInfo is what the admin API of the pod's Envoy says at /server_info, and NoServerInfo why that is not known.
	ServerInfo   []byte
	NoServerInfo error
	Log          *slog.Logger
}

const (
	// checkTimeout bounds a check: istiod with 10,000 hosts takes some seconds for its first answer.
	checkTimeout = 30 * time.Second
	// audience is whom the token has to be for, unless istiod was told otherwise (Istio's).
	audience = "istio-ca"
	// skewAllowed is by how much clocks may differ without harm.
	skewAllowed = 10 * time.Second
)

// Run checks everything that it can, and returns what it found, in the order in which one thing needs the other.
func (x Examination) Run(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	r := &report{}
	r.add("address", func() (string, error) { return resolve(ctx, x.Dial.Address) })
	var peer *x509.Certificate
	if x.Dial.Plain {
		r.skip("the control plane is reached in plain text (controlPlaneAuthPolicy NONE, port "+plainPort+"), without any token", "root", "tls", "token")
	} else {
		r.add("root", x.Dial.describeRoots)
		r.add("tls", func() (detail string, err error) { peer, detail, err = x.Dial.shakeHands(ctx); return detail, err })
		r.add("token", func() (string, error) { return x.token() })
	}
	r.add("clock", func() (string, error) { return x.clock(peer) })
	push := newPush()
	r.add("stream", func() (string, error) { return push.fetch(ctx, &x) })
	if push.complete {
		r.findings = append(r.findings, Finding{Check: "push", State: StateOK, Detail: push.String(), Extensions: push.needs()})
		r.add("extensions", func() (string, error) { return x.extensions(push) })
	} else {
		r.skip("istiod has not answered", "push", "extensions")
	}
	r.add("ca", func() (string, error) { return x.authority(ctx) })
	return r.findings
}

// report collects findings.
type report struct{ findings []Finding }

// warning is an error that keeps nothing from working.
type warning struct{ error }

// skipped is an error that says why there was nothing to check.
type skipped struct{ error }

func (r *report) add(name string, check func() (string, error)) {
	detail, err := check()
	f := Finding{Check: name, State: StateOK, Detail: detail}
	if err != nil {
		f.State, f.Detail = StateFailed, err.Error()
		if errors.As(err, new(warning)) {
			f.State = StateWarning
		}
		if errors.As(err, new(skipped)) {
			f.State = StateSkipped
		}
	}
	r.findings = append(r.findings, f)
}

func (r *report) skip(why string, names ...string) {
	for _, name := range names {
		r.findings = append(r.findings, Finding{Check: name, State: StateSkipped, Detail: why})
	}
}

func resolve(ctx context.Context, address string) (string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("discoveryAddress %q: want host:port: %w", address, err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", fmt.Errorf("discoveryAddress %s: %w: is the Service there, and does the pod's DNS answer?", address, err)
	}
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.Unmap().String())
	}
	slices.Sort(texts)
	return address + " is " + strings.Join(slices.Compact(texts), ", "), nil
}

// describeRoots names the file whose roots count, and each of them.
func (d *Dial) describeRoots() (string, error) {
	if _, err := d.roots(); err != nil {
		return "", err
	}
	path, text, err := firstFile(d.Roots)
	switch {
	case err != nil:
		return "", err
	case path == systemRoots:
		return "those of the operating system", nil
	}
	return describeCertificates(path, text)
}

// describeCertificates fails where none of a file's certificates is valid now.
func describeCertificates(path string, text []byte) (string, error) {
	var all []string
	valid := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		valid = valid || time.Now().Before(cert.NotAfter)
		all = append(all, fmt.Sprintf("%q until %s", cert.Subject, date(cert.NotAfter)))
	}
	detail := path + ": " + strings.Join(all, ", ")
	if !valid {
		return "", fmt.Errorf("%s: expired: mount the present ConfigMap istio-ca-root-cert", detail)
	}
	return detail, nil
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// shakeHands connects, and returns the certificate that is shown there.
func (d *Dial) shakeHands(ctx context.Context) (peer *x509.Certificate, detail string, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config, err := d.tlsConfig()
	if err != nil {
		return nil, "", err
	}
	config.ServerName, config.NextProtos = d.serverName(), []string{"h2"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", d.Address)
	if err != nil {
		var wrong *tls.CertificateVerificationError
		if errors.As(err, &wrong) && len(wrong.UnverifiedCertificates) > 0 {
			peer = wrong.UnverifiedCertificates[0]
			return peer, "", fmt.Errorf("%s: %w: its certificate is of %q by %q, from %s until %s", d.Address, err, peer.DNSNames, peer.Issuer, date(peer.NotBefore), date(peer.NotAfter))
		}
		return nil, "", fmt.Errorf("%s: %w", d.Address, err)
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState() // a tls.Dialer's
	peer = state.PeerCertificates[0]
	return peer, fmt.Sprintf("%s with %s, certificate for %s until %s", tls.VersionName(state.Version), d.serverName(), strings.Join(peer.DNSNames, ", "), date(peer.NotAfter)), nil
}

// clock compares this machine's clock with what others have dated.
func (x Examination) clock(peer *x509.Certificate) (string, error) {
	var dates []string
	compare := func(what string, t time.Time) error {
		if t.IsZero() {
			return nil
		}
		dates = append(dates, what+" "+date(t))
		if ahead := time.Until(t); ahead > skewAllowed {
			return fmt.Errorf("%s %s, which is %v in the future: the clock of this node is slow: what it is shown is not valid yet", what, date(t), ahead.Round(time.Second))
		}
		return nil
	}
	var issued time.Time
	if _, c, err := x.Dial.claims(); err == nil && c.Issued != 0 {
		issued = time.Unix(c.Issued, 0)
	}
	var begins time.Time
	if peer != nil {
		begins = peer.NotBefore
	}
	if err := errors.Join(compare("the token was issued at", issued), compare("istiod's certificate begins at", begins)); err != nil {
		return "", err
	}
	if len(dates) == 0 {
		return "", skipped{errors.New("neither a token nor a certificate has a date to compare with")}
	}
	return "not slow: " + strings.Join(dates, ", "), nil
}

// extensions compares what the push needs with what Envoy has.
func (x Examination) extensions(p *push) (string, error) {
	if x.NoServerInfo != nil {
		return "", skipped{fmt.Errorf("what Envoy has is not known: %w", x.NoServerInfo)}
	}
	var info struct {
		Version string
		Node    struct {
			Extensions []struct {
				TypeURLs []string `json:"type_urls"`
				Disabled bool
			}
		}
	}
	if err := json.Unmarshal(x.ServerInfo, &info); err != nil {
		return "", fmt.Errorf("read /server_info of Envoy: %w", err)
	}
	node := &corev3.Node{}
	for _, e := range info.Node.Extensions {
		node.Extensions = append(node.Extensions, &corev3.Extension{TypeUrls: e.TypeURLs, Disabled: e.Disabled})
	}
	has := extension.Of(node)
	if len(has) == 0 {
		return "", skipped{errors.New("this Envoy does not name its extensions")}
	}
	if lacks := p.lacks(has); len(lacks) > 0 {
		return "", fmt.Errorf("this Envoy (%s) lacks %s: %s", info.Version, strings.Join(lacks, ", "), lackRemedy)
	}
	return "Envoy has all that istiod's configuration needs", nil
}

// authority says whether the certificate authority is there and signs. Of a connection that fails TLS says more than gRPC.
func (x Examination) authority(ctx context.Context) (string, error) {
	if x.Sign == nil {
		return "", skipped{errors.New("none is asked: the certificate is in files (FILE_MOUNTED_CERTS)")}
	}
	if x.CA.Plain {
		return "", warning{fmt.Errorf("%s is reached in plain text, where no token may be sent", x.CA.Address)}
	}
	if _, _, err := x.CA.shakeHands(ctx); err != nil {
		return "", fmt.Errorf("the certificate authority at %w", err)
	}
	detail, err := x.Sign(ctx)
	if err != nil {
		return "", err
	}
	return x.CA.Address + " " + detail, nil
}
