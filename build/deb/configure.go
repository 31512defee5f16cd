package deb

import (
	"bytes"
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strings"

	"understudy.mesh/build/oci"
)

// Tree is the files of packages together, with what their maintainer scripts would have made of them. A directory that
// several packages have is as the first one has it.
func Tree(packages []Package) []oci.File {
	var files []oci.File
	directories := make(map[string]bool)
	for _, p := range packages {
		for _, f := range p.Files {
			if f.Mode.IsDir() && directories[f.Path] {
				continue
			}
			directories[f.Path] = f.Mode.IsDir()
			files = append(files, f)
		}
	}
	slices.SortStableFunc(files, func(a, b oci.File) int { return cmp.Compare(a.Path, b.Path) })
	return slices.Concat(files, mergedDirectories(files), iptablesNames(files), certificates(files))
}

// mergedDirectories are the links of a merged /usr, as far as there is something behind them.
func mergedDirectories(files []oci.File) []oci.File {
	var links []oci.File
	for _, name := range merged {
		if slices.ContainsFunc(files, func(f oci.File) bool { return strings.HasPrefix(f.Path, "/usr"+name+"/") }) {
			links = append(links, link(name, "usr"+name))
		}
	}
	return links
}

// iptablesNames are what update-alternatives makes: iptables is iptables-nft.
func iptablesNames(files []oci.File) []oci.File {
	var links []oci.File
	for _, f := range files {
		base := path.Base(f.Path)
		name, found := strings.CutPrefix(base, "iptables-nft")
		if !found {
			name, found = strings.CutPrefix(base, "ip6tables-nft")
		}
		if found && slices.Contains([]string{"", "-save", "-restore"}, name) {
			links = append(links, link(strings.Replace(f.Path, "-nft", "", 1), base))
		}
	}
	return links
}

// certificates is what update-ca-certificates makes: one file of all authorities.
func certificates(files []oci.File) []oci.File {
	var bundle []byte
	for _, f := range files {
		if strings.HasPrefix(f.Path, "/usr/share/ca-certificates/") && path.Ext(f.Path) == ".crt" {
			bundle = append(append(bundle, bytes.TrimSpace(f.Content)...), '\n')
		}
	}
	if bundle == nil {
		return nil
	}
	return []oci.File{{Path: "/etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Content: bundle}}
}

func link(path, target string) oci.File {
	return oci.File{Path: path, Mode: fs.ModeSymlink, Link: target}
}
