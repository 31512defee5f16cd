// Package contents is the table of what is in our container images. `make images` makes them of it, and the Dockerfile
// is compared with it.
package contents

import (
	"io/fs"
	"slices"

	"understudy.mesh/build/oci"
)

// Image is one image, for every architecture.
type Image struct {
	Name, Title string
	// Packages are of Debian, without those that they depend on.
	Packages []string
	// Files are what no package has and no compiler makes. They are in one layer with the packages.
	Files []oci.File
	// Programs are layers of their own, in this order.
	Programs []Program
	// Directories are made with the last program: it writes there.
	Directories []oci.File
}

// Program is an executable that is not of Debian.
type Program struct {
	Name string // Envoy, or what `make build` calls it
	Path string
}

// Envoy is the name of the program that is not built here.
const Envoy = "envoy"

// All images have these in common.
const (
	UID, GID = 1337, 1337
	// User is that of Istio's images; pods and the rules of capture refer to it.
	User = "1337:1337"
	// Path is where a command without a slash is looked for.
	Path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Images is the table.
var Images = []Image{
	{
		Name: "proxy", Title: "Envoy and its agent; also istio-init",
		// busybox: a shell and its commands. ca-certificates: TLS to the outside. iptables: istio-init.
		Packages: []string{"base-files", "busybox-static", "ca-certificates", "curl", "iptables"},
		Files: slices.Concat(users, commands("awk", "cat", "chmod", "cp", "cut", "date", "df", "dirname", "du", "env", "find", "free", "grep", "head",
			"hostname", "id", "ip", "kill", "less", "ln", "ls", "mkdir", "mv", "nc", "netstat", "nslookup", "pidof", "ping", "ps", "readlink", "rm", "sed",
			"seq", "sh", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "timeout", "top", "touch", "tr", "uname", "uniq", "vi", "wc", "wget", "xargs")),
		Programs:    []Program{{Envoy, "/usr/local/bin/envoy"}, {"pilot-agent", "/usr/local/bin/pilot-agent"}},
		Directories: []oci.File{directory("/etc/istio/proxy"), directory("/var/lib/istio/data")},
	},
	{
		Name: "empty", Title: "What stands in the second container of a pod until it is needed",
		// A pod's postStart hook calls /bin/sh.
		Packages: []string{"base-files", "busybox-static"},
		Files:    slices.Concat(users, commands("sh", "sleep")),
		Programs: []Program{{"pilot-agent-standby", "/usr/local/bin/pilot-agent"}},
	},
	{
		Name: "injector", Title: "Puts the agent into pods",
		Programs: []Program{{"sidecar-injector", "/usr/local/bin/sidecar-injector"}},
	},
}

// Entrypoint is the last program.
func (i Image) Entrypoint() string {
	return i.Programs[len(i.Programs)-1].Path
}

// users are the names that programs show for numbers.
var users = []oci.File{
	{Path: "/etc/passwd", Mode: 0o644, Content: []byte(`root:x:0:0:root:/root:/bin/sh
istio-proxy:x:1337:1337::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`)},
	{Path: "/etc/group", Mode: 0o644, Content: []byte("root:x:0:\nstaff:x:50:\nistio-proxy:x:1337:\nnogroup:x:65534:\n")},
}

// commands are those that busybox is by the name that it is called by.
func commands(names ...string) []oci.File {
	var links []oci.File
	for _, name := range names {
		links = append(links, oci.File{Path: "/usr/bin/" + name, Mode: fs.ModeSymlink, Link: "busybox"})
	}
	return links
}

// directory is one that the agent may write to.
func directory(path string) oci.File {
	return oci.File{Path: path, Mode: fs.ModeDir | 0o755, UID: UID, GID: GID}
}
