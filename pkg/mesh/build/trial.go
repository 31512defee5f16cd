package build

import (
	"bytes"
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Trial is a bootstrap in JSON by which an Envoy can say whether it takes what the EnvoyFilters made: that of the Envoy
// which serves, given serialized, as far as filters depend on it, and for each patch one listener that it applies to, and the clusters that those name.
// It is nil where nothing is patched.
func (o *Output) Trial(serving []byte) ([]byte, error) {
	names := o.Filters.Examples(o.Patched)
	if len(names) == 0 {
		return nil, nil
	}
	return o.trial(serving, names)
}

// Baseline is a Trial of the listeners that capture, patched or not: made without EnvoyFilters, it tells whether a trial
// says anything about them.
func (o *Output) Baseline(serving []byte) ([]byte, error) {
	return o.trial(serving, map[string]bool{OutboundListener: true, InboundListener: true})
}

func (o *Output) trial(serving []byte, names map[string]bool) ([]byte, error) {
	base := &bootstrapv3.Bootstrap{}
	if err := proto.Unmarshal(serving, base); err != nil {
		return nil, fmt.Errorf("read Envoy's bootstrap: %w", err)
	}
	static := &bootstrapv3.Bootstrap_StaticResources{Clusters: base.GetStaticResources().GetClusters(), Secrets: base.GetStaticResources().GetSecrets()}
	b := &bootstrapv3.Bootstrap{ // what filters can depend on; no file, port or log of the Envoy that serves
		Node: base.GetNode(), StaticResources: static, DynamicResources: base.GetDynamicResources(), LayeredRuntime: base.GetLayeredRuntime(),
		TypedDnsResolverConfig: base.GetTypedDnsResolverConfig(), BootstrapExtensions: base.GetBootstrapExtensions(),
	}
	var bodies [][]byte
	for _, r := range o.Resources[ListenerType] {
		if !names[r.Name] {
			continue
		}
		l := &listenerv3.Listener{}
		body, err := r.Body()
		if err == nil {
			err = proto.Unmarshal(body, l)
		}
		if err != nil {
			return nil, fmt.Errorf("read listener %s: %w", r.Name, err)
		}
		static.Listeners, bodies = append(static.Listeners, l), append(bodies, body)
	}
	all := bytes.Join(bodies, nil)
	for _, r := range o.Resources[ClusterType] {
		if !bytes.Contains(all, []byte(r.Name)) {
			continue
		}
		c := &clusterv3.Cluster{}
		body, err := r.Body()
		if err == nil {
			err = proto.Unmarshal(body, c)
		}
		if err != nil {
			return nil, fmt.Errorf("read cluster %s: %w", r.Name, err)
		}
		static.Clusters = append(static.Clusters, c)
	}
	return protojson.Marshal(b)
}
