package contract

// The containers of the proxy. With hot upgrades they are slots, in which generations take turns; each finds its versions in
// annotations of the pod, whose names are these and the slot's.
const (
	ProxyContainer       = "istio-proxy"
	SecondContainer      = "istio-proxy-2"
	VersionAnnotation    = "version.understudy.mesh/"
	VersionAltAnnotation = "versionalt.understudy.mesh/"
)
