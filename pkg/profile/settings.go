package profile

// Settings are what one pod is injected with: a Spec in which every struct is there, every field that has a default is
// set, and where each came from. They share memory with the layers: nobody changes them.
//
// No default, and so maybe nil: proxy.concurrency and lifecycle, proxy.seccompProfile (nil: RuntimeDefault, unless the pod has
// one), hotUpgrade.emptyImage (nil or "": no hot upgrade), hotUpgrade.standbyRequests (nil: Resize where it is possible).
// proxy.config is what the container's PROXY_CONFIG says: JSON of all that is not Istio's default, the typed fields included
// but for proxy.env.
type Settings struct {
	Spec
	// sources says for each field's path ("proxy.resources", "proxy.env.NAME") whose word it is: "annotation ...",
	// "namespace shop", "mesh", "preset asm", "built-in"; several, most specific first, where values are united.
	sources map[string]string
}

// Hot reports whether the pod gets a second slot.
func (s *Settings) Hot() bool {
	return s.HotUpgrade.EmptyImage != nil && *s.HotUpgrade.EmptyImage != ""
}
