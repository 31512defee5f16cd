package inject

import (
	"regexp"
	"strconv"
)

// modernMinor is the minor version of Kubernetes 1 from which on kubelets run native sidecars and change the resources of
// running pods, both without a feature gate.
const modernMinor = 33

var kubernetesVersion = regexp.MustCompile(`^v?1\.(\d{1,4})\b`)

// ParseKubelet reads a kubelet's version, such as v1.33.2-gke.1: modern is that it runs native sidecars and changes the resources of
// running pods ([Environment] Native and Resize, if every node is so), ok that the text is a version.
func ParseKubelet(version string) (modern, ok bool) {
	found := kubernetesVersion.FindStringSubmatch(version)
	if found == nil {
		return false, false
	}
	minor, err := strconv.Atoi(found[1])
	return err == nil && minor >= modernMinor, true
}
