package sidecar

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/pkg/config"
)

// CheckBinary refuses a binaryPath that cannot be executed, before anything starts.
func CheckBinary(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("binaryPath %s: %w: install Envoy there, or set PROXY_CONFIG binaryPath", path, errors.Unwrap(err))
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("binaryPath %s: not an executable file (mode %s): set PROXY_CONFIG binaryPath to Envoy", path, info.Mode())
	}
	return nil
}

// CheckCompliance refuses a policy that this build of the agent cannot keep.
func CheckCompliance(c *config.Config) error {
	if err := c.CompliancePolicy.CheckBuild(); err != nil {
		return fmt.Errorf("%s: %w", c.Spelled("compliancePolicy"), err)
	}
	return nil
}

// capabilityRemedy is what a pod has to say. Kubernetes gives a capability that it adds
// to root only: a process of another user has it in its bounding set, where it is of no
// use without a file that has it, too.
const capabilityRemedy = "the agent's container needs runAsUser 0, runAsGroup 1337 and capabilities.add [NET_ADMIN] (from Linux 5.17 on NET_RAW will do); " +
	"another user than root has it only if the file pilot-agent has it too (setcap cap_net_admin+ep) and allowPrivilegeEscalation is not false"

// CheckCapability tries what Envoy and the agent will do to their sockets, and refuses
// settings that this process may not act on: Envoy would be alive and every connection
// of the pod fail.
func CheckCapability(c *config.Config) error {
	mark := func(value uint32) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv4
			fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		}
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(value)))
	}
	if c.ProxyMark != 0 {
		if err := mark(c.ProxyMark); err != nil {
			return fmt.Errorf("%s: mark a socket: %w: "+capabilityRemedy+"; or leave the mark out, here and in istio-iptables",
				c.Spelled("proxyMark"), err)
		}
	}
	if c.Interception == config.TPROXY {
		if err := mark(iptables.DefaultMark); err != nil {
			return fmt.Errorf("%s: mark a socket, as Envoy has to: %w: "+capabilityRemedy+"; or use REDIRECT, here and in istio-iptables",
				c.Spelled("interceptionMode"), err)
		}
	}
	return nil
}

// capabilities are those that Envoy needs to act on c and the agent has.
func capabilities(c *config.Config) []uintptr {
	if c.ProxyMark == 0 && c.Interception != config.TPROXY {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of version 3
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil // CheckCapability has found that there is one; root hands it on by itself
	}
	var out []uintptr
	for _, capability := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if data[0].Permitted&(1<<capability) != 0 {
			out = append(out, capability)
		}
	}
	return out
}
