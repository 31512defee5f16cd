package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// arrange puts the containers in the order in which the kubelet is to start them.
func (b *builder) arrange(slots []slot, first *corev1.Container) error {
	apps := map[string][]element{}
	for list, now := range b.pod.lists() {
		for i, c := range now {
			switch {
			case b.earlier.has(list, c.Name), c.Name == slots[0].name, b.hot && c.Name == slots[1].name:
				// it goes, and what the user has said of it is in the new one
			case isOurs(c.Name):
				return fmt.Errorf("%s: container %q: the injector adds one of that name; rename it", list, c.Name)
			default:
				apps[list] = append(apps[list], element{at: i})
			}
		}
	}
	var proxies, capture []element
	for _, s := range slots {
		proxies = append(proxies, element{absent, s.value})
		if b.native {
			b.own.InitContainers = append(b.own.InitContainers, s.name)
		} else {
			b.own.Containers = append(b.own.Containers, s.name)
		}
	}
	if first != nil {
		capture = []element{{absent, first}}
		b.own.InitContainers = append([]string{first.Name}, b.own.InitContainers...)
	}
	b.order(initContainers, apps, capture, proxies)
	b.order(containers, apps, capture, proxies)
	return nil
}

// order makes one of the pod's lists: the application's containers, and before or after them those that belong there of ours.
func (b *builder) order(list string, apps map[string][]element, capture, proxies []element) {
	want := apps[list]
	switch {
	case list == initContainers && b.native:
		want = slices.Concat(capture, proxies, want)
	case list == initContainers && *b.settings.Init.CNI: // it checks what is there before any container runs
		want = slices.Concat(capture, want)
	case list == initContainers: // without the proxy, nothing captured gets anywhere
		want = slices.Concat(want, capture)
	case b.native:
	case b.hot || *b.settings.Proxy.HoldApplicationUntilProxyStart: // the kubelet waits for the postStart hook of each
		want = slices.Concat(proxies, want)
	default:
		want = slices.Concat(want, proxies)
	}
	b.ops.list("/spec/"+list, len(b.pod.lists()[list]), want)
}

// has reports whether an earlier pass has added a container.
func (r *recorded) has(list, name string) bool {
	if r == nil {
		return false
	}
	names := r.Containers
	if list == initContainers {
		names = r.InitContainers
	}
	return slices.Contains(names, name)
}
