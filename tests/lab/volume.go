package lab

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Volume is one emptyDir of the pod.
type Volume struct {
	Name, Mount string
	// Private gives every slot one of its own (two volumes with one mount path each). It outlives
	// the slot's container either way.
	Private bool
	// Disk: what is in it outlives a restart of the node. Without it, "medium: Memory".
	Disk bool
	// Mode is of its root, 0777 when "", UID its owner, Size its limit ("64k"; none when "").
	Mode, Size string
	UID        int
	// ReadOnly mounts it so.
	ReadOnly bool
}

// Volumes of an injected pod, as the manual's SidecarSet has them, and the /dev/shm of the pod's
// sandbox, which container runtimes show to all its containers.
func Volumes() []Volume {
	return []Volume{
		{Name: HandoffVolume, Mount: "/etc/asm/uds", Disk: true},
		{Name: ProxyVolume, Mount: "/etc/istio/proxy"},
		{Name: DataVolume, Mount: "/var/lib/istio/data", Disk: true},
		{Name: ShmVolume, Mount: "/dev/shm", Mode: "1777"},
	}
}

// Names of the volumes.
const (
	HandoffVolume = "asm-hotupgrade-data"
	ProxyVolume   = "istio-envoy"
	DataVolume    = "istio-data"
	ShmVolume     = "shm"
)

// makeVolumes mounts a tmpfs for every volume below its first argument and keeps the mount
// namespace; the other arguments are pairs of a name and mount options.
const makeVolumes = `
set -eu
mount --make-rprivate /
cd "$1"
shift
while [ $# -gt 0 ]; do
	mkdir "$1"
	mount -t tmpfs -o "$2" emptydir "$1"
	shift 2
done
echo ready
exec sleep infinity
`

// name is the volume that a slot mounts.
func (v Volume) name(slot int) string {
	if v.Private {
		return v.Name + "-" + strconv.Itoa(slot+1)
	}
	return v.Name
}

func (v Volume) names(slots int) []string {
	var names []string
	for i := range slots {
		names = append(names, v.name(i))
	}
	return slices.Compact(names)
}

func (v Volume) options() string {
	options := fmt.Sprintf("mode=%s,uid=%d", cmp.Or(v.Mode, "0777"), v.UID)
	if v.Size != "" {
		options += ",size=" + v.Size
	}
	return options
}

// VolumePath returns the host path of what a slot (0, 1) has in a volume.
func (s *Slots) VolumePath(name string, slot int) string {
	i := slices.IndexFunc(s.volumes, func(v Volume) bool { return v.Name == name })
	return s.volumePath(s.volumes[i].name(slot))
}

func (s *Slots) volumePath(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", s.holder, filepath.Join(s.dir, "volumes", name))
}

// loseMemory empties the volumes that do not outlive a restart of the node.
func (s *Slots) loseMemory() error {
	for _, v := range s.volumes {
		if v.Disk {
			continue
		}
		for _, name := range v.names(len(s.List)) {
			entries, err := os.ReadDir(s.volumePath(name))
			if err != nil {
				return fmt.Errorf("empty volume %s: %w", name, err)
			}
			for _, e := range entries {
				if err := os.RemoveAll(filepath.Join(s.volumePath(name), e.Name())); err != nil {
					return fmt.Errorf("empty volume %s: %w", name, err)
				}
			}
		}
	}
	return nil
}
