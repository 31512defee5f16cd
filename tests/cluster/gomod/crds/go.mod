// The CRDs of the kinds of others that sidecar-injector restarts, and of SidecarSet. Nothing here is built,
// so versions are changed by hand, and go.sum with `go mod download`: `go mod tidy` would drop both.
module understudy.mesh/tests/cluster/gomod/crds

go 1.26

require (
	github.com/argoproj/argo-rollouts v1.8.5
	github.com/openkruise/kruise v1.8.0
)
