package profile

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

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
	digest  func() ([sha256.Size]byte, error)
}

// Digest is a hash of all that shapes a pod but the proxy's image, which running pods can be given as well: settings with which pods
// come out the same but for that have the same. It is made once.
func (s *Settings) Digest() ([sha256.Size]byte, error) { return s.digest() }

// WithImage are the settings with another image of the proxy, which istio-init has as well unless it has one of its own.
func (s *Settings) WithImage(image string) *Settings {
	proxy, first := *s.Proxy, *s.Init
	if *first.Image == *proxy.Image {
		first.Image = &image
	}
	proxy.Image = &image
	other := &Settings{Spec: s.Spec, sources: s.sources}
	other.Proxy, other.Init, other.digest = &proxy, &first, other.sum
	return other
}

func (s *Settings) sum() ([sha256.Size]byte, error) {
	spec := s.Spec
	spec.Injector, spec.Injection = nil, &Injection{InjectedAnnotations: spec.Injection.InjectedAnnotations} // the rest decides
	proxy, init := *spec.Proxy, *spec.Init
	if proxy.Image != nil && init.Image != nil && *init.Image == *proxy.Image { // as it is unless somebody says otherwise
		init.Image = nil
	}
	proxy.Image = nil
	spec.Proxy, spec.Init = &proxy, &init
	text, err := json.Marshal(spec)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("write the settings: %w", err)
	}
	return sha256.Sum256(text), nil
}

// Hot reports whether the pod gets a second slot.
func (s *Settings) Hot() bool {
	return s.HotUpgrade.EmptyImage != nil && *s.HotUpgrade.EmptyImage != ""
}
