package inject

import (
	"encoding/json"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
)

// probers are the application's probes and hooks by the path at which the agent carries them out: ISTIO_KUBE_APP_PROBERS.
type probers map[string]*handler

// leaf is a probe or a hook of a container.
type leaf struct {
	now    *handler
	at     string // its place in the pod
	path   string // where the agent has it
	ports  []containerPort
	source string // for people
}

// leaves are all of the application's probes and hooks.
func (b *builder) leaves() (all []leaf) {
	for _, list := range []string{initContainers, containers} {
		for i, c := range b.pod.lists()[list] {
			if isOurs(c.Name) {
				continue
			}
			add := func(now *handler, prefix, kind string, field ...any) {
				if now != nil {
					all = append(all, leaf{
						now: now, at: pointer(append([]any{"spec", list, i}, field...)...), path: prefix + c.Name + "/" + kind, ports: c.Ports,
						source: "container " + c.Name + ": " + field[len(field)-1].(string),
					})
				}
			}
			add(c.ReadinessProbe, contract.ProbePrefix, contract.ReadinessPath, "readinessProbe")
			add(c.LivenessProbe, contract.ProbePrefix, contract.LivenessPath, "livenessProbe")
			add(c.StartupProbe, contract.ProbePrefix, contract.StartupPath, "startupProbe")
			if c.Lifecycle != nil {
				add(c.Lifecycle.PreStop, contract.HookPrefix, contract.PreStopPath, "lifecycle", "preStop")
				add(c.Lifecycle.PostStart, contract.HookPrefix, contract.PostStartPath, "lifecycle", "postStart")
			}
		}
	}
	return all
}

// rewriteProbes has the kubelet ask the agent for what it would ask the application, which takes mutual TLS only. known are
// the probes of an earlier pass.
func (b *builder) rewriteProbes(known probers) {
	port := *b.settings.Proxy.StatusPort
	b.probes = probers{}
	for _, l := range b.leaves() {
		original, rewritten := l.now, l.isRewritten()
		if rewritten {
			if original = known[l.path]; original == nil {
				b.warn("%s asks %s, which no agent knows of: write the application's own path there", l.source, l.path)
				continue
			}
		}
		target := original
		if *b.settings.Proxy.RewriteAppProbes && port != 0 && !original.asks(port) {
			if resolved, why := original.resolve(l.ports); resolved != nil {
				b.probes[l.path] = resolved
				target = agents(l.path, port)
			} else if why != "" {
				b.warn("%s stays as it is, and may fail under mutual TLS: %s", l.source, why)
			}
		}
		b.ops.probe(l.at, l.now, target)
	}
}

// isRewritten reports whether the leaf asks an agent already.
func (l leaf) isRewritten() bool { return l.now.HTTPGet != nil && l.now.HTTPGet.Path == l.path }

// asks reports whether h asks a port already.
func (h *handler) asks(port int32) bool {
	return h.HTTPGet != nil && h.HTTPGet.Port == intstr.FromInt32(port) || h.TCPSocket != nil && h.TCPSocket.Port == intstr.FromInt32(port)
}

// resolve is h with a number for its port; nil if h is none that an agent can carry out, with the reason if it is one that asks.
func (h *handler) resolve(ports []containerPort) (resolved *handler, why string) {
	out := *h
	var port *intstr.IntOrString
	host := ""
	switch {
	case h.HTTPGet != nil:
		out.HTTPGet = new(*h.HTTPGet)
		port, host = &out.HTTPGet.Port, h.HTTPGet.Host
	case h.TCPSocket != nil:
		out.TCPSocket = new(*h.TCPSocket)
		port, host = &out.TCPSocket.Port, h.TCPSocket.Host
	case h.GRPC != nil:
		return &out, ""
	default:
		return nil, "" // exec and sleep happen in the container
	}
	if host != "" {
		return nil, "host is " + strconv.Quote(host) + ", and an agent asks its own pod only"
	}
	if port.Type == intstr.Int {
		return &out, ""
	}
	if n, err := strconv.ParseInt(port.StrVal, 10, 32); err == nil {
		*port = intstr.FromInt32(int32(n))
		return &out, ""
	}
	for _, named := range ports {
		if named.Name == port.StrVal {
			*port = intstr.FromInt32(named.ContainerPort)
			return &out, ""
		}
	}
	return nil, "the container has no port named " + strconv.Quote(port.StrVal)
}

// agents is the request to an agent that stands for another.
func agents(path string, port int32) *handler {
	return &handler{HTTPGet: &httpGet{Path: path, Port: intstr.FromInt32(port)}}
}

// probe changes the leaves in which now and target differ; all else of a probe stays, headers and what is newer than this.
func (o *operations) probe(at string, now, target *handler) {
	if now == target {
		return
	}
	if now.HTTPGet != nil && target.HTTPGet != nil {
		from, to := now.HTTPGet, target.HTTPGet
		if from.Path != to.Path {
			o.add(at+"/httpGet/path", to.Path)
		}
		if from.Port != to.Port {
			o.replace(at+"/httpGet/port", to.Port)
		}
		if from.scheme() != to.scheme() {
			o.add(at+"/httpGet/scheme", to.scheme())
		}
		return
	}
	for kind, is := range map[string]bool{"httpGet": now.HTTPGet != nil, "tcpSocket": now.TCPSocket != nil, "grpc": now.GRPC != nil} {
		if is {
			o.remove(at + "/" + kind)
		}
	}
	switch {
	case target.HTTPGet != nil:
		o.add(at+"/httpGet", target.HTTPGet)
	case target.TCPSocket != nil:
		o.add(at+"/tcpSocket", target.TCPSocket)
	case target.GRPC != nil:
		o.add(at+"/grpc", target.GRPC)
	}
}

func (h *httpGet) scheme() string {
	if strings.EqualFold(h.Scheme, "HTTPS") {
		return "HTTPS"
	}
	return "HTTP"
}

// parseProbers reads the probes of an earlier pass, which a user may have changed.
func parseProbers(text string) (probers, error) {
	p := probers{}
	if text == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, err
	}
	for path, h := range p {
		if h == nil {
			delete(p, path)
		}
	}
	return p, nil
}
