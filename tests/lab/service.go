package lab

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// ServiceIP is the address of the pod's Service. No interface has it.
const ServiceIP = "10.96.0.10"

// serviceRules are what kube-proxy has for a Service in its nftables mode: a map of endpoints, and a refusal for what has none.
const serviceRules = `table ip kube-proxy {
	map endpoints { type ipv4_addr : ipv4_addr; }
	chain nat-output { type nat hook output priority -100; ip daddr ` + ServiceIP + ` dnat to ip daddr map @endpoints; }
	chain filter-output { type filter hook output priority 0; ip daddr ` + ServiceIP + ` reject; }
}
`

// NewService gives the pod a Service, and stands in for the EndpointSlice controller and for kube-proxy on the node of the clients, which is
// the outside: while the pod is ready, who connects to ServiceIP, at any port, gets to the pod; else the connection is refused.
// A connection that exists is not touched.
func NewService(t T, kubelet *Kubelet) {
	t.Helper()
	out := kubelet.slots.lab.Out
	_, err := run("ip", "-n", out.Name, "route", "add", ServiceIP, "dev", "eth0")
	if err == nil {
		err = out.nft(serviceRules)
	}
	if err != nil {
		t.Fatalf("lab: make the Service: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for is := false; ctx.Err() == nil; {
			ready, changed := kubelet.Ready()
			if ready != is {
				if err := out.setEndpoint(ready); err != nil {
					t.Logf("lab: tell the Service that the pod is ready, %v: %v", ready, err)
				}
				_, _ = fmt.Fprintf(kubelet.Log, "%s Service: the pod is ready: %v\n", time.Now().Format(eventTime), ready)
				is = ready
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (n *Namespace) setEndpoint(ready bool) error {
	verb := "delete"
	if ready {
		verb = "add"
	}
	return n.nft(verb + " element ip kube-proxy endpoints { " + ServiceIP + " : " + PodIP + " }\n")
}

// nft changes the namespace's nf_tables.
func (n *Namespace) nft(commands string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	cmd := n.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = bytes.NewBufferString(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft -f - in %s: %w: %s", n.Name, err, out)
	}
	return nil
}
