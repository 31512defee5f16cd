package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/platform"
)

// maxSettingsFile bounds the mesh file and the downward API's files; the API
// server keeps a pod's annotations, and a ConfigMap, under 1 MiB.
const maxSettingsFile = 2 << 20

// interfaceAddrs returns the addresses of the interfaces that are up, without
// loopback and link-local ones; none where they cannot be listed.
func interfaceAddrs() []netip.Addr {
	var addrs []netip.Addr
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs = append(addrs, addrsOf(i)...)
	}
	return addrs
}

// addrsOf are an interface's, without loopback and link-local ones.
func addrsOf(i net.Interface) (addrs []netip.Addr) {
	list, _ := i.Addrs()
	for _, a := range list {
		prefix, err := netip.ParsePrefix(a.String())
		if addr := prefix.Addr().Unmap(); err == nil && !addr.IsLinkLocalUnicast() && !addr.IsLoopback() {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// namedAddrs are those of the interface with a name.
func namedAddrs(name string) ([]netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	return addrsOf(*i), nil
}

// askPlatform asks a cloud's metadata server.
func askPlatform(ctx context.Context) func(name string, ipv4 bool, static map[string]string) (config.Platform, error) {
	return func(name string, ipv4 bool, static map[string]string) (config.Platform, error) {
		info, err := platform.Ask(ctx, name, platform.Machine{IPv4: ipv4, Static: static})
		return config.Platform(info), err
	}
}

// readSettingsFile reads a file of a bounded size.
func readSettingsFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSettingsFile+1))
	if err == nil && len(data) > maxSettingsFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSettingsFile)
	}
	return data, err
}

// fileLimit is how many files Envoy may have open, 0 for no limit. That is the hard limit:
// Go has raised the agent's soft limit to it, and Envoy raises its own.
func fileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur == unix.RLIM_INFINITY {
		return 0
	}
	return limit.Cur
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// asFile returns w where it is a file that a child process can inherit.
func asFile(w io.Writer) *os.File {
	f, _ := w.(*os.File)
	return f
}

// bootTime is the time since the node booted, suspends included (CLOCK_BOOTTIME,
// clock_gettime(2)), 0 if the kernel does not tell. All containers of a node share this
// clock, and nobody can set it.
func bootTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
