// Package references owns which resources name others, that have to be asked for besides: it reads them as fields on the wire.
package references

import (
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/xds/internal/canonical"
)

// Fields of Envoy's Cluster and Listener, and of what is in them, by the names that their protos have.
const (
	fieldClusterEDS     protowire.Number = 3  // eds_cluster_config of a Cluster
	fieldEDSServiceName protowire.Number = 2  // service_name of that
	fieldChains         protowire.Number = 3  // filter_chains of a Listener
	fieldDefaultChain   protowire.Number = 25 // default_filter_chain of a Listener
	fieldFilters        protowire.Number = 3  // filters of a FilterChain
	fieldTypedConfig    protowire.Number = 4  // typed_config of a Filter, an Any
	fieldAnyType        protowire.Number = 1  // type_url of that
	fieldAnyValue       protowire.Number = 2  // value of that
	fieldManagerRDS     protowire.Number = 3  // rds of an HttpConnectionManager
	fieldRouteConfig    protowire.Number = 2  // route_config_name of that

	connectionManager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)

// Type URLs of what refers to others.
const (
	Cluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	Listener = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// Of are the names of what a resource of a type refers to: the endpoints of a cluster, the routes of a listener. One of another type, and
// what is no message, refers to nothing.
func Of(url, name string, body []byte) []string {
	switch url {
	case Cluster:
		if name := Endpoints(name, body); name != "" {
			return []string{name}
		}
	case Listener:
		return routes(body)
	}
	return nil
}

// Endpoints is the name of the endpoints that a cluster is without, "" if it has them itself. Mostly it is the cluster's own.
func Endpoints(name string, cluster []byte) string {
	config, is := canonical.Last(cluster, fieldClusterEDS)
	if !is {
		return ""
	}
	if service, _ := canonical.Last(config, fieldEDSServiceName); len(service) > 0 && string(service) != name {
		return string(service)
	}
	return name
}

// routes are the names of those that the filters of a listener's connections ask for.
func routes(listener []byte) (names []string) {
	for chain := range canonical.Fields(listener) {
		if chain.Number != fieldChains && chain.Number != fieldDefaultChain {
			continue
		}
		for filter := range canonical.Fields(chain.Value) {
			if name := routesOf(filter); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// routesOf is the name of the routes that a field of a FilterChain asks for, "" for none.
func routesOf(filter canonical.Field) string {
	if filter.Number != fieldFilters {
		return ""
	}
	config, _ := canonical.Last(filter.Value, fieldTypedConfig)
	if url, _ := canonical.Last(config, fieldAnyType); string(url) != connectionManager {
		return ""
	}
	manager, _ := canonical.Last(config, fieldAnyValue)
	rds, _ := canonical.Last(manager, fieldManagerRDS)
	name, _ := canonical.Last(rds, fieldRouteConfig)
	return string(name)
}
