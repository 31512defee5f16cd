package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/config/document"
	"understudy.mesh/pkg/contract"
)

// dropped are fields of ProxyConfig that Istio's API has dropped and the agent still reads.
var dropped = []string{"connectTimeout", "parentShutdownDuration"}

// parseConfig reads a ProxyConfig in YAML. It returns what is right of it, and every mistake.
func parseConfig(text string) (map[string]any, error) {
	tree, err := document.Parse([]byte(text))
	if err != nil {
		return nil, err
	}
	var mistakes []error
	out := document.Fields{
		Known:   func(path string) bool { return slices.Contains(dropped, path) },
		Unknown: func(path string) { mistakes = append(mistakes, fmt.Errorf("%s: unknown field of ProxyConfig", path)) },
		Wrong: func(path, value, want string) {
			mistakes = append(mistakes, fmt.Errorf("%s: %q: %s", path, value, want))
		},
	}.Check((&meshv1alpha1.ProxyConfig{}).ProtoReflect(), tree)
	return out, errors.Join(mistakes...)
}

// typed are the fields of a ProxyConfig that a Spec has a field for. Each is put into the spec, unless that is set there,
// and says whether it could be.
var typed = map[string]func(s *Spec, value any) error{
	"concurrency":              func(s *Spec, v any) error { return number(&s.Proxy.Concurrency, v) },
	"statusPort":               func(s *Spec, v any) error { return number(&s.Proxy.StatusPort, v) },
	"terminationDrainDuration": func(s *Spec, v any) error { return duration(&s.Proxy.TerminationDrainDuration, v) },
	"holdApplicationUntilProxyStarts": func(s *Spec, v any) error {
		return assign(&s.Proxy.HoldApplicationUntilProxyStart, v, "want true or false")
	},
	"interceptionMode": func(s *Spec, v any) error {
		var mode *string
		if err := assign(&mode, v, "want REDIRECT, TPROXY or NONE"); err != nil {
			return err
		}
		keep(&s.Capture.Mode, CaptureMode(*mode))
		return nil
	},
	"discoveryAddress": func(s *Spec, v any) error { return assign(&s.ControlPlane.DiscoveryAddress, v, "want host:port") },
	"meshId":           func(s *Spec, v any) error { return assign(&s.ControlPlane.MeshID, v, "want a string") },
	"proxyMetadata":    metadata,
}

// lift returns a spec with what its proxy.config says in the typed fields that it leaves open, and the rest of proxy.config.
func lift(s *Spec) (*Spec, map[string]any) {
	if s.Proxy == nil || s.Proxy.Config == nil {
		return s, nil
	}
	out := *s
	proxy := *s.Proxy
	proxy.Config, out.Proxy = nil, &proxy
	proxy.Env = maps.Clone(proxy.Env)
	out.Capture, out.DNS, out.ControlPlane = copied(s.Capture), copied(s.DNS), copied(s.ControlPlane)
	config, _ := parseConfig(*s.Proxy.Config)
	for _, name := range slices.Sorted(maps.Keys(config)) {
		if put := typed[name]; put != nil {
			_ = put(&out, config[name]) // Validate has said what is wrong
			delete(config, name)
		}
	}
	return &out, config
}

// copied is a copy of *p, or an empty one.
func copied[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return new(*p)
}

// keep sets a field that is not set.
func keep[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func assign[T any](field **T, value any, want string) error {
	v, ok := value.(T)
	if !ok {
		return errors.New(want)
	}
	keep(field, v)
	return nil
}

func number(field **int32, value any) error {
	n, err := strconv.ParseInt(fmt.Sprint(value), 10, 32)
	if err != nil {
		return errors.New("want a whole number")
	}
	keep(field, int32(n))
	return nil
}

func duration(field **metav1.Duration, value any) error {
	d, err := time.ParseDuration(fmt.Sprint(value))
	if err != nil {
		return errors.New("want a duration such as 10s")
	}
	keep(field, metav1.Duration{Duration: d})
	return nil
}

// meaning are the names in proxyMetadata that a field stands for: the injector writes these variables itself.
var meaning = map[string]struct {
	field string
	put   func(s *Spec, value string) error
}{
	contract.DNSCaptureVariable:  {"dns.capture", func(s *Spec, v string) error { return truth(&s.DNS.Capture, v) }},
	contract.DNSAllocateVariable: {"dns.autoAllocate", func(s *Spec, v string) error { return truth(&s.DNS.AutoAllocate, v) }},
	contract.DrainVariable: {"proxy.terminationDrainDuration", func(s *Spec, v string) error {
		return duration(&s.Proxy.TerminationDrainDuration, v+"s")
	}},
	"ISTIO_META_CLUSTER_ID": {"controlPlane.clusterID", func(s *Spec, v string) error { keep(&s.ControlPlane.ClusterID, v); return nil }},
	"ISTIO_META_NETWORK":    {"controlPlane.network", func(s *Spec, v string) error { keep(&s.ControlPlane.Network, v); return nil }},
	"ISTIO_META_MESH_ID":    {"controlPlane.meshID", func(s *Spec, v string) error { keep(&s.ControlPlane.MeshID, v); return nil }},
	"TRUST_DOMAIN":          {"controlPlane.trustDomain", func(s *Spec, v string) error { keep(&s.ControlPlane.TrustDomain, v); return nil }},
	"CA_ADDR":               {"controlPlane.caAddress", func(s *Spec, v string) error { keep(&s.ControlPlane.CAAddress, v); return nil }},
	contract.ModeVariable:   {"capture.mode", func(s *Spec, v string) error { keep(&s.Capture.Mode, CaptureMode(v)); return nil }},
}

func truth(field **bool, value string) error {
	v, err := strconv.ParseBool(value)
	if err != nil {
		return errors.New("want true or false")
	}
	keep(field, v)
	return nil
}

// metadata puts proxyMetadata into proxy.env, and what has a field into that.
func metadata(s *Spec, value any) error {
	entries, _ := value.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		text := document.Text(entries[name])
		if known, ok := meaning[name]; ok {
			if err := known.put(s, text); err != nil {
				return fmt.Errorf("%s: %q: %w", name, text, err)
			}
			continue
		}
		if s.Proxy.Env == nil {
			s.Proxy.Env = map[string]string{}
		}
		if _, set := s.Proxy.Env[name]; !set {
			s.Proxy.Env[name] = text
		}
	}
	return nil
}

// typedConfig is what the typed fields of a pod's settings are in its ProxyConfig, without Istio's defaults.
func typedConfig(s *Settings) map[string]any {
	out := map[string]any{}
	if s.Proxy.Concurrency != nil {
		out["concurrency"] = *s.Proxy.Concurrency
	}
	if d := s.Proxy.TerminationDrainDuration.Duration; d != defaultDrain {
		out["terminationDrainDuration"] = strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
	}
	if port := *s.Proxy.StatusPort; port != contract.StatusPort {
		out["statusPort"] = port
	}
	if *s.Proxy.HoldApplicationUntilProxyStart {
		out["holdApplicationUntilProxyStarts"] = true
	}
	if mode := *s.Capture.Mode; mode != Redirect {
		out["interceptionMode"] = mode
	}
	if address := *s.ControlPlane.DiscoveryAddress; address != defaultDiscovery {
		out["discoveryAddress"] = address
	}
	if id := *s.ControlPlane.MeshID; id != defaultDomain {
		out["meshId"] = id
	}
	return out
}

func marshalConfig(tree map[string]any) string {
	text, err := json.Marshal(tree)
	if err != nil {
		return "{}" // unreachable: the values come from JSON
	}
	return string(text)
}
