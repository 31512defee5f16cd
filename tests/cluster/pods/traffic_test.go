package pods

import (
	"fmt"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// shop is a host of the mesh, which has a VIP.
const shop = "shop.world.test"

// streamLife is how long a stream of the traffic lasts: less than any drain here.
const streamLife = load.Duration(3 * time.Second)

// toPod is traffic from the node to the pod's own address.
func (p *twoSlots) toPod(t *testing.T) []load.Flow {
	t.Helper()
	ip := p.ns.Pod(t, p.name).IP
	url := "http://" + ip + "/"
	return []load.Flow{
		{Name: "pod, new", Kind: load.HTTP1New, Target: url, Rate: 25, Want: "server=nginx"},
		{Name: "pod, kept", Kind: load.HTTP1Keep, Target: url, Rate: 25, Want: "server=nginx"},
		{Name: "pod, h2", Kind: load.HTTP2, Target: url, Rate: 25, Want: "server=nginx"},
		{Name: "pod, h2 streams", Kind: load.H2Stream, Target: url[:len(url)-1] + load.EchoPath, Rate: 20, Life: streamLife},
		{Name: "pod, tcp streams", Kind: load.TCPStream, Target: ip + ":9000", Rate: 20, Life: streamLife},
	}
}

// settled is how many requests in a row a flow through a Service makes before a test counts: kube-proxy follows the endpoints some
// seconds later, and refuses connections that come while it does.
const settled = 100

// toServices is traffic from the node through the Services of applyMesh, once kube-proxy lets it through.
func toServices(t *testing.T, ns *cluster.Namespace) []load.Flow {
	t.Helper()
	type service struct {
		Spec struct {
			ClusterIP string
			Ports     []struct{ NodePort int }
		}
	}
	var inside, node service
	ns.Get(t, &inside, "service", "nginx")
	ns.Get(t, &node, "service", "nginx-node")
	clusterIP, nodePort := "http://"+inside.Spec.ClusterIP+"/", fmt.Sprintf("http://%s:%d/", cluster.NodeAddress, node.Spec.Ports[0].NodePort)
	flows := []load.Flow{
		{Name: "ClusterIP, new", Kind: load.HTTP1New, Target: clusterIP, Rate: 25, Want: "server=nginx"},
		{Name: "ClusterIP, kept", Kind: load.HTTP1Keep, Target: clusterIP, Rate: 20, Want: "server=nginx"},
		{Name: "NodePort, new", Kind: load.HTTP1New, Target: nodePort, Rate: 25, Want: "server=nginx"},
	}
	awaitServices(t, ns, cluster.FromNode(), flows...)
	return flows
}

// awaitServices waits until nothing fails of a load through Services for some seconds.
func awaitServices(t *testing.T, ns *cluster.Namespace, from cluster.Where, flows ...load.Flow) {
	t.Helper()
	lab.Eventually(t, stepLimit, "the Services lead to the pods", func() error {
		l := ns.Load(t, from, flows...)
		lab.Eventually(t, stepLimit, "each flow has been answered for some seconds", func() error {
			for _, f := range l.Report().Flows {
				if n := f.Total.OK + f.Total.Failures(); n < settled {
					return fmt.Errorf("%s has %d answers and failures", f.Name, n)
				}
			}
			return nil
		})
		if report := l.Stop(t); report.Failures() > 0 {
			return fmt.Errorf("%d requests failed", report.Failures())
		}
		return nil
	})
}

// outboundToo is what the application asks for besides outbound: on kept connections, and by another transport.
func outboundToo() []load.Flow {
	return []load.Flow{
		{Name: "out: http, kept", Kind: load.HTTP1Keep, Target: "http://" + shop + "/", Rate: 20, Want: "server=world"},
		{Name: "dns over tcp", Kind: load.DNSTCP, Names: []string{shop, "aliyun.com"}, Want: "240.240.", Rate: 20, NewSocket: true},
	}
}

// traffic is all of a test's load.
type traffic []*cluster.Load

// startTraffic sends to the pod, and from its application; and through its Services if they send to it all the time.
func (p *twoSlots) startTraffic(t *testing.T, besides ...load.Flow) traffic {
	t.Helper()
	return traffic{
		p.ns.Load(t, cluster.FromNode(), append(p.toPod(t), besides...)...),
		p.ns.Load(t, cluster.FromPod(p.name, application), append(outbound(), outboundToo()...)...),
	}
}

// mustNotFail ends the load, and demands that every flow had answers and no request failed.
func (l traffic) mustNotFail(t *testing.T) {
	t.Helper()
	var all load.Report
	for _, one := range l {
		all = all.Merge(one.Stop(t))
	}
	for _, f := range all.Flows {
		if f.Total.OK == 0 {
			t.Errorf("%s: there was no answer at all", f.Name)
		}
	}
	if all.Failures() > 0 {
		t.Errorf("%d requests failed", all.Failures())
	}
	t.Logf("the load:\n%v", all)
}
