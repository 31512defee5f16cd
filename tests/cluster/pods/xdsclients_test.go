package pods

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// machines are workloads that register themselves, and whose health istiod keeps.
const machines = `
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: machines}
spec:
  template: {serviceAccount: default}
  probe: {exec: {command: ["true"]}}
`

// asMachine makes the pod one of them, which speaks of whole states; it is well while a file is there.
const asMachine = `
spec:
  containers:
  - name: istio-proxy
    env:
    - {name: ISTIO_DELTA_XDS, value: "false"}
    - {name: ISTIO_META_AUTO_REGISTER_GROUP, value: machines}
    - {name: PROXY_CONFIG, value: "{discoveryAddress: '` + cluster.IstiodAddress + `', readinessProbe: {periodSeconds: 1, exec: {command: [/bin/sh, -c, 'test -e /etc/istio/proxy/well']}}}"}
`

// TestPodUnderIstiodWholeStates has a pod speak to a real istiod of whole states (ISTIO_DELTA_XDS=false), of its application's health,
// and with five xDS clients beside its Envoy: what changes arrives everywhere, and istiod ends no stream.
func TestPodUnderIstiodWholeStates(t *testing.T) {
	ns := shared.Namespace(t, "whole")
	ns.Apply(t, join(plainText, hosts, machines, firstPod(t, ns, app, serves, underIstiod, asMachine)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	awaitHealth(t, ns, "False")
	clients := connectClients(t, ns)
	ns.Exec(t, app, proxy, "touch", "/etc/istio/proxy/well")
	awaitHealth(t, ns, "True")

	mustChange(t, ns, clients)
	ns.Exec(t, app, proxy, "rm", "/etc/istio/proxy/well")
	awaitHealth(t, ns, "False")
	if found, err := ns.TryExec(app, proxy, "pilot-agent", "doctor", "istiod"); err != nil {
		t.Errorf("doctor istiod finds in a pod that istiod serves: %v\n%s", err, found)
	}
	mustHaveStreams(t, ns)
}

// TestLongXDSClients has five xDS clients beside a pod's Envoy for ten minutes, in which istiod has changes for all of them: nobody's
// stream ends.
func TestLongXDSClients(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	ns := shared.Namespace(t, "clients")
	ns.Apply(t, join(plainText, hosts, firstPod(t, ns, app, serves, underIstiod)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	clients := connectClients(t, ns)
	changes := 0
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); changes++ {
		mustChange(t, ns, clients)
	}
	mustHaveStreams(t, ns)
	t.Logf("%d changes there and back", changes)
}

// mustChange has istiod give a host and take it away, which arrives everywhere.
func mustChange(t *testing.T, ns *cluster.Namespace, clients []*xdsClient) {
	t.Helper()
	const host = "other.world.test"
	ns.Kubectl(t, "patch", "serviceentry", "shop", "--type=merge", "--patch", `{"spec":{"hosts":["shop.world.test","`+host+`"]}}`)
	awaitName(t, ns, host, true)
	for _, c := range clients {
		c.await(host, true)
	}
	lab.Eventually(t, podLimit, "Envoy serves the new host", func() error {
		got, err := ns.TryExec(app, app, "curl", "-sS", "http://"+host+"/")
		if err != nil || got != "server=world\n" {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	})
	ns.Kubectl(t, "patch", "serviceentry", "shop", "--type=merge", "--patch", `{"spec":{"hosts":["shop.world.test"]}}`)
	awaitName(t, ns, host, false)
	for _, c := range clients {
		c.await(host, false)
	}
}

// mustHaveStreams demands that the clients' streams and Envoy's are those that they opened.
func mustHaveStreams(t *testing.T, ns *cluster.Namespace) {
	t.Helper()
	page := ns.Exec(t, app, proxy, "pilot-agent", "request", "--debug-port", "15020", "GET", "/debug/istiod")
	if want := fmt.Sprintf(`"open": %d`, xdsClients); !strings.Contains(page, want) || strings.Contains(page, `"refused": {`) {
		t.Errorf("the agent says of its streams, after all this:\n%s", page)
	}
	if got := stat(t, ns, "cluster.xds-grpc..upstream_rq_total"); got != "1" {
		t.Errorf("Envoy has opened %q streams, want one", got)
	}
}

// xdsClients is how many there are beside Envoy.
const xdsClients = 5

func connectClients(t *testing.T, ns *cluster.Namespace) (clients []*xdsClient) {
	t.Helper()
	for range xdsClients {
		clients = append(clients, connectXDS(t, ns))
	}
	return clients
}

// awaitHealth waits until istiod has the health of the one workload of machines.
func awaitHealth(t *testing.T, ns *cluster.Namespace, want string) {
	t.Helper()
	lab.Eventually(t, podLimit, "istiod knows how the application is: "+want, func() error {
		got, err := ns.Try("get", "workloadentries", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Healthy")].status}`)
		if err != nil || got != want {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	})
}

// xdsClient is an xDS client beside the pod's Envoy, at the agent's socket, which asks for all clusters.
type xdsClient struct {
	t        *testing.T
	clusters chan string // what it has, of each response
}

// connectXDS connects to the agent's socket of the pod, from the machine.
func connectXDS(t *testing.T, ns *cluster.Namespace) *xdsClient {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/etc/istio/proxy/XDS", ns.Process(t, app, proxy)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": ns.Name, "CLUSTER_ID": "Kubernetes", "SERVICE_ACCOUNT": "default"})
	if err != nil {
		t.Fatal(err)
	}
	const clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	node := &corev3.Node{Id: "sidecar~" + ns.Pod(t, app).IP + "~grpc." + ns.Name + "~" + ns.Name + ".svc.cluster.local", Metadata: metadata}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: clusterType}); err != nil {
		t.Fatal(err)
	}
	c := &xdsClient{t, make(chan string, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(c.clusters)
		for {
			resp, err := stream.Recv()
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("the stream of a client has ended: %v", err)
				}
				return
			}
			var names strings.Builder
			for _, r := range resp.GetResources() {
				names.Write(r.GetValue())
			}
			c.clusters <- names.String()
			_ = stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: clusterType, VersionInfo: resp.GetVersionInfo(), ResponseNonce: resp.GetNonce()}) // its end shows above
		}
	}()
	t.Cleanup(func() { cancel(); conn.Close(); <-done })
	return c
}

// await waits until the client has a cluster of a host, or (false) has none.
func (c *xdsClient) await(host string, has bool) {
	c.t.Helper()
	for late := time.After(podLimit); ; {
		select {
		case clusters := <-c.clusters:
			if strings.Contains(clusters, host) == has {
				return
			}
		case <-late:
			c.t.Fatalf("a client has a cluster of %s: %v, want %v", host, !has, has)
		}
	}
}
