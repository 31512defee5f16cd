package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// nodeLink carries the node's address; its peer is there because it has to have one. A dummy device would do, and not
// every kernel has it.
const (
	nodeLink = "node0"
	nodePeer = "node0-peer"
)

// routing are the settings of the network namespace. Without the bridge's, the answer of a pod to another one that asked by
// a Service would go past the rules that translate it back.
var routing = map[string]string{
	"net/ipv4/ip_forward":                 "1",
	"net/bridge/bridge-nf-call-iptables":  "1",
	"net/bridge/bridge-nf-call-ip6tables": "1",
}

// wire gives the network namespace its addresses, and a default route to nowhere.
func wire() error {
	if err := up("lo"); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nodeLink}, PeerName: nodePeer}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make the node's link: %w", err)
	}
	for _, address := range []string{Address + "/24", WorldAddress + "/32"} {
		a, err := netlink.ParseAddr(address)
		if err == nil {
			err = netlink.AddrAdd(pair, a)
		}
		if err != nil {
			return fmt.Errorf("give the node the address %s: %w", address, err)
		}
	}
	if err := errors.Join(up(nodePeer), up(nodeLink)); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: pair.Index, Gw: net.ParseIP(gateway)}); err != nil {
		return fmt.Errorf("add the node's default route: %w", err)
	}
	for name, value := range routing {
		file := filepath.Join("/proc/sys", name)
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s: %w (bridge: modprobe br_netfilter)", name, err)
		}
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}
