package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// Component is one program of the node.
type Component string

// The components. All but the istiods are started with the node.
const (
	Outside           Component = "world"
	Etcd              Component = "etcd"
	Containerd        Component = "containerd"
	APIServer         Component = "kube-apiserver"
	ControllerManager Component = "kube-controller-manager"
	Scheduler         Component = "kube-scheduler"
	Kubelet           Component = "kubelet"
	KubeProxy         Component = "kube-proxy"
	CoreDNS           Component = "coredns"
	Istiod            Component = "istiod"
	DefaultIstiod     Component = "istiod-default"
)

// program is how a component is started, and how one sees that it serves.
type program struct {
	name  Component
	argv  []string
	env   []string // besides the node's own
	ready func(ctx context.Context) error
}

func binary(name string) string     { return filepath.Join(BinDir, name) }
func key(name string) string        { return filepath.Join(stateMount, PKI, name) }
func kubeconfig(name string) string { return key(name + ".kubeconfig") }

// onRequest are the programs that are started when somebody asks for them.
func onRequest() []program { return []program{istiod(), defaultIstiod()} }

// phases are the programs in the order of their start: those of one phase at once, the next when all of them serve.
func phases(c Config) [][]program {
	return [][]program{
		{outside(), etcd(), containerd()},
		{apiServer()},
		append([]program{kubelet(c), kubeProxy(), coreDNS()}, controllers()...),
	}
}

func outside() program {
	return program{
		name: Outside,
		argv: []string{
			binary("understudy-load"), "serve", "-name", "world", "-http", WorldAddress + ":80", "-echo", WorldAddress + ":9000",
			"-cert", key("world.crt") + "," + key("world.key"), "-https", WorldAddress + ":443",
		},
		ready: accepts("tcp", WorldAddress+":443"),
	}
}

func etcd() program {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	return program{
		name: Etcd,
		argv: []string{
			// Without fsync: the node's power loss is the end of its processes, and the machine keeps what they wrote.
			binary("etcd"), "--data-dir", "/var/lib/etcd", "--unsafe-no-fsync", "--log-level", "warn",
			"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		},
		ready: answers(client + "/health"),
	}
}

func containerd() program {
	const socket = "/run/containerd/containerd.sock"
	return program{
		name:  Containerd,
		argv:  []string{binary("containerd"), "--config", filepath.Join(home, configuration["containerd.toml"])},
		ready: accepts("unix", socket),
	}
}

func apiServer() program {
	return program{
		name: APIServer,
		argv: []string{
			binary("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=6443",
			"--advertise-address=" + Address, "--service-cluster-ip-range=" + services,
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + key("sa.pub"), "--service-account-signing-key-file=" + key("sa.key"),
			"--client-ca-file=" + key("ca.crt"), "--tls-cert-file=" + key("apiserver.crt"), "--tls-private-key-file=" + key("apiserver.key"),
			"--kubelet-client-certificate=" + key("kubelet-client.crt"), "--kubelet-client-key=" + key("kubelet-client.key"),
			// Else exec and logs ask DNS for the node's name.
			"--kubelet-preferred-address-types=InternalIP",
			"--authorization-mode=Node,RBAC", "--allow-privileged=true",
		},
		ready: answers(Server + "/readyz"),
	}
}

func controllers() []program {
	return []program{{
		name: ControllerManager,
		argv: []string{
			binary("kube-controller-manager"), "--kubeconfig=" + kubeconfig("controller-manager"), "--leader-elect=false",
			"--service-account-private-key-file=" + key("sa.key"), "--root-ca-file=" + key("ca.crt"), "--use-service-account-credentials",
			"--cluster-signing-cert-file=" + key("ca.crt"), "--cluster-signing-key-file=" + key("ca.key"),
		},
		ready: answers("https://127.0.0.1:10257/healthz"),
	}, {
		name:  Scheduler,
		argv:  []string{binary("kube-scheduler"), "--kubeconfig=" + kubeconfig("scheduler"), "--leader-elect=false"},
		ready: answers("https://127.0.0.1:10259/healthz"),
	}}
}

func kubelet(c Config) program {
	return program{
		name: Kubelet,
		argv: []string{
			binary("kubelet"), "--config=" + filepath.Join(home, configuration["kubelet.yaml"]), "--config-dir=" + filepath.Join(stateMount, KubeletDir),
			"--kubeconfig=" + kubeconfig("kubelet"), "--node-ip=" + Address, "--hostname-override=" + Name, "--cgroup-root=" + c.CgroupRoot,
		},
		ready: answers("http://127.0.0.1:10248/healthz"),
	}
}

func kubeProxy() program {
	return program{
		name: KubeProxy,
		argv: []string{
			binary("kube-proxy"), "--kubeconfig=" + kubeconfig("proxy"), "--hostname-override=" + Name, "--proxy-mode=nftables", "--cluster-cidr=" + pods,
			// 0: as it is. The size of the table belongs to the machine, not to the namespace.
			"--conntrack-max-per-core=0", "--conntrack-min=0",
		},
		ready: answers("http://127.0.0.1:10256/healthz"),
	}
}

func coreDNS() program {
	return program{
		name:  CoreDNS,
		argv:  []string{binary("coredns"), "-conf", filepath.Join(home, configuration["Corefile"])},
		ready: accepts("tcp", Address+":53"),
	}
}

// istiod is an unpatched one, as a process. What it has switched off are the extensions that only Istio's own Envoy has.
func istiod() program {
	return program{
		name: Istiod,
		argv: []string{
			binary("pilot-discovery"), "discovery", "--kubeconfig", kubeconfig("admin"), "--httpAddr", ":18080", "--secureGRPCAddr", ":15012",
			"--grpcAddr", ":15010", "--monitoringAddr", ":15014", "--httpsAddr", ":15017", "--meshConfig", filepath.Join(stateMount, Istio, "mesh.yaml"),
		},
		env: []string{
			"POD_NAME=istiod-0", "POD_NAMESPACE=istio-system", "CLUSTER_ID=Kubernetes", "REVISION=default", "PILOT_CERT_PROVIDER=istiod",
			"PILOT_ENABLE_METADATA_EXCHANGE=false", "ISTIO_MULTIROOT_MESH=true", "PILOT_ENABLE_ALPN_FILTER=false", "PILOT_ENABLE_IP_AUTOALLOCATE=false",
		},
		ready: answers("http://127.0.0.1:18080/ready"),
	}
}

// DefaultIstiodPort is where that istiod serves proxies over TLS.
const DefaultIstiodPort = "25012"

// defaultIstiod is another one for the same mesh, at other ports, with nothing switched off.
func defaultIstiod() program {
	return program{
		name: DefaultIstiod,
		argv: []string{
			binary("pilot-discovery"), "discovery", "--kubeconfig", kubeconfig("admin"), "--httpAddr", ":28080", "--secureGRPCAddr", ":" + DefaultIstiodPort,
			"--grpcAddr", "", "--monitoringAddr", ":25014", "--httpsAddr", ":25017", "--meshConfig", filepath.Join(stateMount, Istio, DefaultMesh),
		},
		env:   []string{"POD_NAME=istiod-1", "POD_NAMESPACE=istio-system", "CLUSTER_ID=Kubernetes", "REVISION=default", "PILOT_CERT_PROVIDER=istiod"},
		ready: answers("http://127.0.0.1:28080/ready"),
	}
}

// lookTimeout is how long one look at a component may take.
const lookTimeout = 2 * time.Second

// answers looks whether a URL answers 200. Certificates are not looked at: all of it is on addresses of this namespace.
func answers(url string) func(context.Context) error {
	client := &http.Client{Timeout: lookTimeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, response.Status)
		}
		return nil
	}
}

// accepts looks whether somebody listens.
func accepts(network, address string) func(context.Context) error {
	dialer := &net.Dialer{Timeout: lookTimeout}
	return func(ctx context.Context) error {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
}
