// Package mesh owns the embedded control plane: a directory of Istio YAML and what it means.
//
// A Source reads and watches the directory and keeps, document by document, the last good state. From the good
// documents it makes a Registry, the merged services of the mesh, of which [understudy.mesh/pkg/mesh/build] makes one
// consistent set of Envoy clusters and listeners together with the names that DNS must answer. Source is the only part
// that touches the world; everything after it is pure.
//
// The path of a byte is
//
//	file -> internal/document (documents, trees) -> decode (strict, by the types of istio.io/api)
//	     -> validate (entry, workload) -> Registry (services, merged by host) -> build (clusters, listeners, hosts)
//
// What is kept between two builds is small on purpose: compact entries, and the serialized resources of each service
// keyed by the content they came from, so that a change of one service among 10,000 rebuilds that one only. No object
// of istio.io/api and no Envoy message outlives the call that made it.
package mesh
