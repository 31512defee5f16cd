package files

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// entryAt is a ServiceEntry of one TCP port, with addresses or with an automatic one.
func entryAt(host, addresses string) string {
	return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + strings.TrimSuffix(host, ".x") + "}\nspec:\n  hosts: [" + host +
		"]\n  addresses: [" + addresses + "]\n  ports: [{number: 80, name: p, protocol: TCP}]\n  resolution: STATIC\n  endpoints: [{address: 10.0.0.1}]\n---\n"
}

// declaring publishes the files of a directory, with the real allocation of VIPs and the real resources.
type declaring struct {
	*Files
	t       *testing.T
	applied chan error        // Envoy's answers
	known   map[string]string // what DNS answers
	clash   string            // two listeners of one snapshot that have an address in common
}

func newDeclaring(t *testing.T) *declaring {
	o := mesh.Options{
		Namespace: "default", IPv4: true, IPv6: true, InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: time.Second,
		AutoAllocate: true, VIPRanges: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
	}
	vips, err := vip.Open(vip.Config{V4: o.VIPRanges[0], V6: o.VIPRanges[1], IPv6: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	d := &declaring{t: t, applied: make(chan error), known: map[string]string{}}
	d.Files, err = New(Config{
		Dir: t.TempDir(), Options: o, VIPs: vips, TTL: 30 * time.Second, Ready: &status.Readiness{}, InForce: func() {},
		Log: func(string) *slog.Logger { return slog.New(slog.DiscardHandler) },
		Envoy: publish.Envoy{
			Set: func(snap xds.Snapshot) uint64 { d.look(snap); return 1 },
			Applied: func(ctx context.Context, _ uint64) error {
				select {
				case err := <-d.applied:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Connected: func() (bool, <-chan struct{}) { return true, nil },
			Warming:   func(context.Context) (clusters, listeners uint64, err error) { return 0, 0, nil },
		},
		Names: func(set []table.Host, gone []string) {
			for _, name := range gone {
				delete(d.known, name)
			}
			for _, h := range set {
				d.known[h.Name] = h.Addrs[0].String()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// look finds two listeners on one address, which Envoy would refuse.
func (d *declaring) look(snap xds.Snapshot) {
	owner := map[string]string{}
	for _, r := range snap[build.ListenerType] {
		var l listenerv3.Listener
		if err := proto.Unmarshal(bodyOf(r), &l); err != nil {
			d.t.Error(err)
		}
		addrs := []string{l.Address.String()}
		for _, a := range l.AdditionalAddresses {
			addrs = append(addrs, a.Address.String())
		}
		for _, a := range addrs {
			if other := owner[a]; other != "" {
				d.clash = other + " and " + l.Name
			}
			owner[a] = l.Name
		}
	}
}

// publish brings text into force; meanwhile looks at what DNS answers before Envoy has taken it.
func (d *declaring) publish(text string, meanwhile func()) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.c.Dir, "x.yaml"), []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
	registry, err := d.source.Load()
	if err != nil {
		d.t.Fatal(err)
	}
	d.latest.put(registry)
	synctest.Wait()
	meanwhile()
	d.applied <- nil
	synctest.Wait()
	if d.clash != "" {
		d.t.Errorf("listeners %s are on one address", d.clash)
	}
}

// TestDeclaredAddressTakesAVIP declares the VIP of a host as another's address: the host gets another VIP, it has a name
// all the time, and no two listeners are ever on one address.
func TestDeclaredAddressTakesAVIP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeclaring(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); d.Publish(ctx) }()
		defer func() { cancel(); <-done }()
		auto := entryAt("v1.x", "")
		d.publish(auto, func() {})
		vip := d.known["v1.x"]
		if vip == "" {
			t.Fatal("v1.x has no VIP")
		}
		stays := func() {
			if d.known["v1.x"] != vip {
				t.Errorf("before its new listener is in force v1.x is %q, not %s", d.known["v1.x"], vip)
			}
		}
		d.publish(auto+entryAt("v2.x", vip), stays)
		moved := d.known["v1.x"]
		if moved == "" || moved == vip || d.known["v2.x"] != vip {
			t.Errorf("with %s declared by v2.x DNS answers %v", vip, d.known)
		}
		vip = moved
		d.publish(auto, stays)
		if d.known["v1.x"] != moved || d.known["v2.x"] != "" {
			t.Errorf("without v2.x DNS answers %v, v1.x should stay %s", d.known, moved)
		}
	})
}
