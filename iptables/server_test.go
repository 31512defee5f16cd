package iptables_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// serve answers at each of the sockets "NETWORK ADDRESS NAME ..." until its standard
// input ends. A TCP server says its name and which address the client asked for, a
// UDP server its name. "transparent4" and "transparent6" are TCP, and take what TPROXY
// hands them; "relay4" and "relay6" pass that on, with NAME as their mark; "addresses"
// says who is connected.
func serve(args []string) {
	for ; len(args) >= 3; args = args[3:] {
		start := serveTCP
		switch network := args[0]; {
		case strings.HasPrefix(network, "udp"):
			start = serveUDP
		case strings.HasPrefix(network, "relay"):
			start = serveRelay
		case network == "addresses":
			start = serveAddresses
		}
		if err := start(args[0], args[1], args[2]); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

func serveTCP(network, address, name string) error {
	var config net.ListenConfig
	if version, ok := strings.CutPrefix(network, "transparent"); ok {
		network, config.Control = "tcp"+version, control(transparentOption(version == "6"))
	}
	l, err := config.Listen(context.Background(), network, address)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				continue
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, name, askedFor(c.(*net.TCPConn)))
				io.Copy(io.Discard, c) // who closes first has to keep the port for a minute
			}()
		}
	}()
	return nil
}

// askedFor returns the address that the client dialed, whatever became of it since.
func askedFor(c *net.TCPConn) netip.AddrPort {
	if asked := redirectedFrom(c); asked.IsValid() {
		return asked
	}
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// serveUDP answers from the address that was asked, of which there are many.
func serveUDP(network, address, name string) error {
	level, option, free := unix.SOL_IP, unix.IP_PKTINFO, unix.IP_FREEBIND
	if network == "udp6" {
		level, option, free = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_FREEBIND
	}
	config := net.ListenConfig{Control: control(sockOption{level, option, 1}, sockOption{level, free, 1})}
	l, err := config.ListenPacket(context.Background(), network, address)
	if err != nil {
		return err
	}
	c := l.(*net.UDPConn)
	go func() {
		data, info := make([]byte, 64), make([]byte, 128)
		for {
			_, n, _, from, err := c.ReadMsgUDPAddrPort(data, info)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteMsgUDPAddrPort([]byte(name+"\n"), info[:n], from)
			}
		}
	}()
	return nil
}

// sockOption is an option of a socket, set before it is bound.
type sockOption struct{ level, name, value int }

func transparentOption(v6 bool) sockOption {
	if v6 {
		return sockOption{unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1}
	}
	return sockOption{unix.SOL_IP, unix.IP_TRANSPARENT, 1}
}

func control(options ...sockOption) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			for _, o := range options {
				failed = errors.Join(failed, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		})
		return errors.Join(err, failed)
	}
}

// redirectedFrom returns where a redirected connection was going to, by
// SO_ORIGINAL_DST of netfilter; it is invalid for one that was not redirected.
func redirectedFrom(conn *net.TCPConn) (destination netip.AddrPort) {
	const soOriginalDst = 80 // linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h
	raw, err := conn.SyscallConn()
	if err != nil {
		return destination
	}
	v4 := conn.LocalAddr().(*net.TCPAddr).IP.To4() != nil
	raw.Control(func(fd uintptr) {
		if v4 { // a sockaddr_in, which fits into the first field of an IPv6Mreq
			if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); err == nil {
				b := m.Multiaddr
				destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
			}
		} else if m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); err == nil {
			port := binary.NativeEndian.AppendUint16(nil, m.Addr.Port)
			destination = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port))
		}
	})
	return destination
}
