package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/pkg/logging"
)

// Kind says how the text of a setting is read, and so which Go type it has.
type Kind int

// The kinds, each with its Go type. The zero Kind is none.
const (
	String           Kind = iota + 1 // string
	Path                             // string, not empty
	Bool                             // bool
	Switch                           // bool: on or off
	Duration                         // time.Duration, in Go's notation; not negative
	Seconds                          // time.Duration, as a whole number of seconds
	Port                             // uint16, not 0
	PortOrOff                        // uint16
	Count                            // int, not negative
	Cores                            // int: a number of cores, rounded up
	Size                             // uint32
	IP                               // netip.Addr
	HostPort                         // string, host:port
	ListenAddrs                      // []netip.AddrPort
	StringList                       // []string: comma-separated, or a JSON array
	RegexpList                       // []string, each a valid regular expression
	StringMap                        // map[string]string: a JSON object
	JSONObject                       // string: a JSON object
	TrafficPolicy                    // bool: whether REGISTRY_ONLY
	LogEncoding                      // bool: whether JSON
	TakeoverMode                     // Takeover
	HungAction                       // bool: whether restart
	Limit                            // uint32, 1 to 2147483647
	InterceptionMode                 // Interception
	Mark                             // uint32, not 0: decimal, or hexadecimal after 0x
	LogLevels                        // logging.Levels
	EnvoyLevels                      // string
	EnvoyComponents                  // string
)

// maxDuration bounds every duration: a month is beyond any drain, and below the
// 2^32 seconds and milliseconds that Envoy's flags hold.
const maxDuration = 30 * 24 * time.Hour

// parse reads text as k. The error says what would be right.
func (k Kind) parse(text string) (any, error) {
	switch k {
	case String:
		return text, nil
	case Path:
		return parsePath(text)
	case Bool:
		return parseBool(text)
	case Switch:
		return parseSwitch(text)
	case Duration:
		return parseDuration(text)
	case Seconds:
		return parseSeconds(text)
	case Port, PortOrOff:
		return parsePort(text, k == PortOrOff)
	case Count:
		return parseCount(text)
	case Cores:
		return parseCores(text)
	case Size:
		n, err := strconv.ParseUint(text, 10, 32)
		return uint32(n), remedy(err, "want a whole number")
	case IP:
		addr, err := netip.ParseAddr(text)
		return addr.Unmap(), remedy(err, "want an IP address")
	case HostPort:
		return parseHostPort(text)
	case ListenAddrs:
		return parseListenAddrs(text)
	case TrafficPolicy:
		return oneOf(text, "ALLOW_ANY", "REGISTRY_ONLY")
	case LogEncoding:
		return oneOf(text, "TEXT", "JSON")
	case HungAction:
		return oneOf(text, "report", "restart")
	}
	return k.parseText(text)
}

// parseText reads the kinds whose text has a language of its own.
func (k Kind) parseText(text string) (any, error) {
	switch k {
	case TakeoverMode:
		return parseTakeover(text)
	case InterceptionMode:
		return parseInterception(text)
	case Mark:
		return parseMark(text)
	case Limit:
		n, err := strconv.ParseUint(text, 10, 31)
		if err == nil && n == 0 {
			err = strconv.ErrRange
		}
		return uint32(n), remedy(err, "want a whole number, 1 to 2147483647")
	case StringList:
		return parseList(text)
	case RegexpList:
		return parseRegexps(text)
	case StringMap:
		var m map[string]string
		err := json.Unmarshal([]byte(text), &m)
		return m, remedy(err, "want a map of strings")
	case JSONObject:
		var m map[string]json.RawMessage
		err := json.Unmarshal([]byte(text), &m)
		return text, remedy(err, "want a JSON object")
	case LogLevels:
		return logging.ParseLevels(text)
	case EnvoyLevels:
		return parseEnvoyLevels(text)
	case EnvoyComponents:
		return parseEnvoyComponents(text)
	}
	return nil, fmt.Errorf("kind %d has no parser", k)
}

// errNotText is for bytes that are no text: protobuf, and so Envoy's configuration,
// holds nothing else.
var errNotText = errors.New("want UTF-8 text")

// remedy replaces a parser's error by what would be right.
func remedy(err error, want string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s", want)
}

func parsePath(text string) (string, error) {
	if text == "" || strings.ContainsRune(text, 0) {
		return "", fmt.Errorf("want a path")
	}
	return text, nil
}

func parseBool(text string) (bool, error) {
	v, err := strconv.ParseBool(text)
	return v, remedy(err, "want true or false")
}

func parseSwitch(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "on", "true":
		return true, nil
	case "off", "false":
		return false, nil
	}
	return false, errors.New("want on or off")
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxDuration {
		return 0, fmt.Errorf("want a duration from 0s to %s, such as 45s or 1m30s", maxDuration)
	}
	return d, nil
}

func parseSeconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	d := time.Duration(n) * time.Second
	if err != nil || d > maxDuration {
		return 0, fmt.Errorf("want a whole number of seconds, at most %d", int(maxDuration.Seconds()))
	}
	return d, nil
}

func parsePort(text string, zero bool) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	switch {
	case zero && err != nil:
		return 0, fmt.Errorf("want a port from 1 to 65535, or 0 to turn it off")
	case !zero && (err != nil || n == 0):
		return 0, fmt.Errorf("want a port from 1 to 65535")
	}
	return uint16(n), nil
}

// maxCount bounds counts of threads: more workers than any machine has cores.
const maxCount = 4096

func parseCount(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n > maxCount {
		return 0, fmt.Errorf("want a whole number from 0 to %d", maxCount)
	}
	return int(n), nil
}

// parseCores reads a CPU quantity as the downward API and resource limits write it:
// 2, 1.5 or 1500m.
func parseCores(text string) (int, error) {
	number, unit := text, 1.0
	if milli, ok := strings.CutSuffix(text, "m"); ok {
		number, unit = milli, 1000
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v >= 0 && v/unit <= maxCount) {
		return 0, fmt.Errorf("want a number of cores, such as 2 or 1500m")
	}
	n := int(v / unit)
	if float64(n) < v/unit {
		n++
	}
	return n, nil
}

func parseHostPort(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = parsePort(port, false)
	}
	if err != nil || host == "" || strings.ContainsFunc(host, isSpace) {
		return "", fmt.Errorf("want host:port, such as istiod.istio-system.svc:15012")
	}
	return text, nil
}

func isSpace(r rune) bool { return r <= ' ' }

// localhost stands for the loopback address of every family that the pod has.
const localhost = "localhost"

// parseListenAddrs reads one listening address. localhost gives both families here;
// derive drops the one that the pod does not have.
func parseListenAddrs(text string) ([]netip.AddrPort, error) {
	want := fmt.Errorf("want address:port, such as localhost:15053 or 10.0.0.1:15053")
	host, portText, err := net.SplitHostPort(text)
	if err != nil {
		return nil, want
	}
	port, err := parsePort(portText, false)
	if err != nil {
		return nil, want
	}
	switch host {
	case localhost:
		return []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
			netip.AddrPortFrom(netip.IPv6Loopback(), port),
		}, nil
	case "":
		return []netip.AddrPort{
			netip.AddrPortFrom(netip.IPv4Unspecified(), port),
			netip.AddrPortFrom(netip.IPv6Unspecified(), port),
		}, nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, want
	}
	return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), port)}, nil
}

func parseList(text string) ([]string, error) {
	var list []string
	if strings.HasPrefix(text, "[") {
		err := json.Unmarshal([]byte(text), &list)
		return list, remedy(err, "want a list of strings")
	}
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list, nil
}

// parseRegexps checks with Go's RE2; Envoy's is the same language (google/re2).
func parseRegexps(text string) ([]string, error) {
	list, err := parseList(text)
	if err != nil {
		return nil, err
	}
	for _, item := range list {
		if _, err := regexp.Compile(item); err != nil {
			return nil, fmt.Errorf("want regular expressions: %q: %v", item, err)
		}
	}
	return list, nil
}

// oneOf reads an enumeration of two: false for the first name, true for the second.
func oneOf(text, no, yes string) (bool, error) {
	if text != no && text != yes {
		return false, fmt.Errorf("want %s or %s", no, yes)
	}
	return text == yes, nil
}

// parseTakeover reads a Takeover; nothing is the default, as a manifest may fill it from
// a variable that is not set.
func parseTakeover(text string) (Takeover, error) {
	switch t := Takeover(text); t {
	case "":
		return TakeoverAuto, nil
	case TakeoverAuto, TakeoverForce:
		return t, nil
	}
	return "", fmt.Errorf("want %s or %s", TakeoverAuto, TakeoverForce)
}

func parseInterception(text string) (Interception, error) {
	switch m := Interception(text); m {
	case Redirect, TPROXY, NoCapture:
		return m, nil
	}
	return "", fmt.Errorf("want %s, %s or %s", Redirect, TPROXY, NoCapture)
}

// parseMark reads what istio-iptables --proxy-mark takes.
func parseMark(text string) (uint32, error) {
	digits, base := text, 10
	if after, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok {
		digits, base = after, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("want a number from 1 to 0xffffffff, decimal or after 0x hexadecimal")
	}
	return uint32(n), nil
}

// String is the word for a kind in --help and on the reference page.
func (k Kind) String() string {
	switch k {
	case Bool:
		return "bool"
	case Switch:
		return "on/off"
	case Duration:
		return "duration"
	case Seconds:
		return "seconds"
	case Port, PortOrOff:
		return "port"
	case Count, Size, Limit:
		return "number"
	case Cores:
		return "cores"
	case IP:
		return "ip"
	case HostPort, ListenAddrs:
		return "host:port"
	case StringList, RegexpList:
		return "list"
	case StringMap:
		return "map"
	case JSONObject:
		return "json"
	case LogLevels, EnvoyLevels, EnvoyComponents:
		return "levels"
	case TrafficPolicy, LogEncoding, TakeoverMode, HungAction:
		return "enum"
	}
	return "string"
}
