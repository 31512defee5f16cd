package istiod

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	routeType = envoyPrefix + "config.route.v3.RouteConfiguration"
	hcm       = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	// signature stands in every token of the tests, and must stand nowhere else.
	signature = "c2VjcmV0"
)

// jwt is a token with these claims, in JSON.
func jwt(claims string) []byte {
	return []byte("e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + signature + "\n")
}

// claimed are the claims of a good token, changed by pairs of texts.
func claimed(changes ...string) []byte {
	now := time.Now().Unix()
	text := fmt.Sprintf(`{"aud":["istio-ca"],"sub":"system:serviceaccount:default:app","iat":%d,"exp":%d}`, now-60, now+3600)
	return jwt(strings.NewReplacer(changes...).Replace(text))
}

// examined is a pod's way to a fake istiod that serves by TLS.
type examined struct {
	Examination
	t           *testing.T
	fake        *fake
	root, token string
}

func examine(t *testing.T) *examined {
	t.Helper()
	dir := t.TempDir()
	x := &examined{t: t, root: filepath.Join(dir, "root.pem"), token: filepath.Join(dir, "token")}
	a := newAuthority(t, "the mesh's")
	pair := a.pair(localServerName)
	x.fake = startFake(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})))
	write(t, x.root, a.pem)
	write(t, x.token, claimed())
	metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": "default", "SERVICE_ACCOUNT": "app"})
	if err != nil {
		t.Fatal(err)
	}
	dial := Dial{
		Address: strings.Replace(x.fake.addr, "127.0.0.1", "localhost", 1), Roots: []string{x.root}, Tokens: []string{x.token},
		KeepaliveTime: 30 * time.Second, KeepaliveTimeout: 10 * time.Second, MaxMessage: 1 << 20,
	}
	x.Examination = Examination{
		Dial: dial, CA: dial, Sign: func(context.Context) (string, error) { return "signs it", nil }, Node: &corev3.Node{Id: "sidecar~1.1.1.1~app.default~x", Metadata: metadata},
		ServerInfo: []byte(`{"version":"c/1.40.0/x","node":{"extensions":[{"type_urls":["` + hcm + `"]}]}}`),
		Log:        slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	return x
}

// found runs the checks, and returns "state detail" by check.
func (x *examined) found(limit time.Duration) map[string]string {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), limit)
	defer cancel()
	found := make(map[string]string)
	for _, f := range x.Run(ctx) {
		if strings.Contains(f.Detail, signature) {
			x.t.Errorf("%s shows the token: %s", f.Check, f.Detail)
		}
		found[f.Check] = string(f.State) + " " + f.Detail
	}
	return found
}

// plays has the fake answer with a cluster of EDS, a listener with a route, and one that takes an extension besides.
func (x *examined) plays(extension string) {
	body := func(m proto.Message) string {
		b, err := proto.Marshal(m)
		if err != nil {
			x.t.Error(err)
		}
		return string(b)
	}
	manager := &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "80"}}}
	listener := &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{
		{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: typePrefix + hcm, Value: []byte(body(manager))}}},
		{Name: "x", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: typePrefix + extension}}},
	}}}}
	cluster := func(name, service string) string {
		return body(&clusterv3.Cluster{
			Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}, EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: service},
		})
	}
	over := make(chan struct{})
	played := make(chan struct{})
	x.t.Cleanup(func() { close(over); x.fake.stop(); <-played })
	go func() {
		defer close(played)
		var s *fakeStream
		select {
		case s = <-x.fake.streams:
		case <-over:
			return
		}
		for req := range s.requests {
			switch request(req) {
			case "Cluster node":
				s.give(clusterType, "c="+cluster("c", "service"), "other="+cluster("other", ""))
			case "ClusterLoadAssignment +other +service":
				s.give(endpointType, "service=1", "other=1")
			case "Listener":
				s.give(listenerType, "l="+body(listener))
			case "RouteConfiguration +80":
				s.give(routeType, "80=1")
			}
		}
	}()
}

// TestExamination: all is well with a pod that istiod serves, and its stream is closed.
func TestExamination(t *testing.T) {
	x := examine(t)
	x.plays(hcm)
	found := x.found(deadline)
	for check, want := range map[string]string{
		"address": "ok localhost:", "root": `ok ` + x.root + `: "CN=the mesh's" until `, "tls": "ok TLS 1.3 with istiod.istio-system.svc, certificate for istiod.istio-system.svc until ",
		"token": "ok " + x.token + ": of system:serviceaccount:default:app for istio-ca, for another 1h0m0s", "clock": "ok not slow: the token was issued at ",
		"stream": "ok istiod answers sidecar~1.1.1.1~app.default~x after ", "extensions": "ok Envoy has all", "ca": "ok " + x.CA.Address + " signs it",
		"push": "ok 2 Cluster (0 KiB), 2 ClusterLoadAssignment (0 KiB), 1 Listener (0 KiB), 1 RouteConfiguration (0 KiB); 0 KiB in all",
	} {
		if !strings.HasPrefix(strings.ReplaceAll(found[check], "59m59s", "1h0m0s"), want) {
			t.Errorf("%s: %q, want %q", check, found[check], want)
		}
	}
}

// TestExaminationFinds what may be wrong, each by the check that is about it.
func TestExaminationFinds(t *testing.T) {
	future := fmt.Sprint(time.Now().Add(10 * time.Minute).Unix())
	other := newAuthority(t, "other")
	_, _, expired := other.sign("old", time.Now().Add(-time.Hour), nil)
	for name, tc := range map[string]struct {
		breaks func(*examined)
		want   map[string]string
	}{
		"no such name": {func(x *examined) { x.Dial.Address = "istiod.invalid:15012" }, map[string]string{"address": "failed discoveryAddress istiod.invalid:15012: ", "push": "skipped istiod has not answered"}},
		"no port":      {func(x *examined) { x.Dial.Address = "istiod" }, map[string]string{"address": `failed discoveryAddress "istiod": want host:port`}},
		"nobody there": {func(x *examined) { x.fake.stop() }, map[string]string{"tls": "failed localhost:", "stream": "failed localhost:", "ca": "failed the certificate authority at localhost:"}},
		"no root":      {func(x *examined) { x.Dial.Roots = []string{"/none"} }, map[string]string{"root": "failed the root certificate of istiod: none of /none is there: mount the ConfigMap"}},
		"another root": {func(x *examined) { write(x.t, x.root, other.pem) }, map[string]string{"root": `ok`, "tls": "failed localhost:", "clock": "ok"}},
		"an old root":  {func(x *examined) { write(x.t, x.root, expired) }, map[string]string{"root": "failed "}},
		"another name": {func(x *examined) { x.Dial.ServerName = "istiod.elsewhere" }, map[string]string{"tls": "failed localhost:", "stream": "failed"}},
		"no token":     {func(x *examined) { x.Dial.Tokens = []string{"/none"} }, map[string]string{"token": "failed none of /none is there: mount a projected serviceAccountToken"}},
		"no JWT":       {func(x *examined) { write(x.t, x.token, []byte(signature)) }, map[string]string{"token": "failed ", "clock": "ok not slow: istiod's certificate"}},
		"no claims":    {func(x *examined) { write(x.t, x.token, []byte("a.b."+signature)) }, map[string]string{"token": "failed "}},
		"an old token": {func(x *examined) { write(x.t, x.token, claimed(`"exp":`, `"exp":1,"x":`)) }, map[string]string{"token": "failed "}},
		"for the API server": {func(x *examined) { write(x.t, x.token, claimed(`["istio-ca"]`, `"https://kubernetes"`)) },
			map[string]string{"token": "warning "}},
		"another's token": {func(x *examined) { write(x.t, x.token, claimed("default:app", "default:web")) }, map[string]string{"token": "warning "}},
		"a slow clock":    {func(x *examined) { write(x.t, x.token, claimed(`"iat":`, `"iat":`+future+`,"x":`)) }, map[string]string{"clock": "failed the token was issued at "}},
		"refused": {func(x *examined) {
			x.fake.refuse = func() error { return status.Error(codes.Unauthenticated, "no such account") }
		},
			map[string]string{"stream": "failed istiod refuses sidecar~1.1.1.1~app.default~x: ", "extensions": "skipped istiod has not answered"}},
		"Envoy unknown": {func(x *examined) { x.NoServerInfo = io.ErrUnexpectedEOF }, map[string]string{"extensions": "skipped what Envoy has is not known: unexpected EOF"}},
		"a CA that does not sign": {func(x *examined) {
			x.Sign = func(context.Context) (string, error) { return "", status.Error(codes.PermissionDenied, "not yours") }
		}, map[string]string{"ca": "failed rpc error: code = PermissionDenied desc = not yours", "tls": "ok"}},
		"certificates in files": {func(x *examined) { x.Sign = nil }, map[string]string{"ca": "skipped none is asked"}},
		"a CA in clear":         {func(x *examined) { x.CA.Plain = true }, map[string]string{"ca": "warning "}},
		"in clear":              {func(x *examined) { x.Dial.Plain = true }, map[string]string{"root": "skipped", "tls": "skipped", "token": "skipped"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := examine(t)
			x.plays(hcm)
			tc.breaks(x)
			found := x.found(deadline)
			for check, want := range tc.want {
				if !strings.HasPrefix(found[check], want) {
					t.Errorf("%s: %q, want %q", check, found[check], want)
				}
			}
		})
	}
}

// TestExaminationNamesExtensions that Envoy lacks.
func TestExaminationNamesExtensions(t *testing.T) {
	x := examine(t)
	x.plays(alpn)
	if got, want := x.found(deadline)["extensions"], "failed this Envoy (c/1.40.0/x) lacks "+alpn+": "+lackRemedy; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestExaminationEnds with an istiod that says nothing.
func TestExaminationEnds(t *testing.T) {
	x := examine(t)
	if got := x.found(2 * time.Second)["stream"]; !strings.HasPrefix(got, "failed istiod was asked for Cluster as sidecar~1.1.1.1~app.default~x: ") {
		t.Errorf("%q", got)
	}
}
