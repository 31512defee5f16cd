package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// resolvConf is what the forwarder and the table use of resolv.conf(5).
type resolvConf struct {
	Servers  []netip.AddrPort // in the file's order, each once, all of them
	Search   []string         // lower case, without a final dot
	Timeout  time.Duration    // options timeout:n; 0 when not given
	Attempts int              // options attempts:n; 2 when not given, as glibc
	Rotate   bool             // options rotate
	TCP      bool             // options use-vc
}

const (
	dnsPort = 53

	// The defaults and caps of resolv.conf(5).
	defaultAttempts = 2
	maxAttempts     = 5
	maxTimeout      = 30 * time.Second

	// maxResolvConf bounds what is read of the file; kubelets limit the
	// search list to 2048 characters.
	maxResolvConf = 64 << 10
)

// readResolvConf reads the file at path. It takes what resolv.conf(5)
// describes, and `nameserver [address]:port` as OpenBSD does. Lines that it
// does not know are ignored, as every resolver does; the error is that of
// opening or reading the file.
func readResolvConf(path string) (resolvConf, error) {
	// Not blocking: a FIFO of that name must not stop the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return resolvConf{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return resolvConf{}, errors.Join(fmt.Errorf("read resolver configuration: %s is not a regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return resolvConf{}, fmt.Errorf("read resolver configuration: %w", err)
	}
	return parseResolvConf(data), nil
}

func parseResolvConf(data []byte) resolvConf {
	c := resolvConf{Attempts: defaultAttempts}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if s, ok := parseServer(fields[1]); ok && !slices.Contains(c.Servers, s) {
				c.Servers = append(c.Servers, s)
			}
		case "domain", "search": // the last one wins
			c.Search = parseSearch(fields[1:])
		case "options":
			for _, o := range fields[1:] {
				c.option(o)
			}
		}
	}
	return c
}

// parseServer reads an address, or [address]:port.
func parseServer(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), dnsPort), true
	}
	host, port, found := strings.Cut(strings.TrimPrefix(s, "["), "]:")
	a, err := netip.ParseAddr(host)
	p, err2 := strconv.ParseUint(port, 10, 16)
	if !strings.HasPrefix(s, "[") || !found || err != nil || err2 != nil || p == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

func parseSearch(domains []string) []string {
	var list []string
	for _, d := range domains {
		if d = wire.Normal(d); d != "" && !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

func (c *resolvConf) option(o string) {
	name, value, _ := strings.Cut(o, ":")
	n, err := strconv.Atoi(value)
	switch {
	case name == "rotate":
		c.Rotate = true
	case name == "use-vc":
		c.TCP = true
	case name == "timeout" && err == nil && n > 0:
		c.Timeout = min(time.Duration(n), maxTimeout/time.Second) * time.Second
	case name == "attempts" && err == nil && n > 0:
		c.Attempts = min(n, maxAttempts)
	}
}
