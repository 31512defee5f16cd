package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/internal/compliance"
	"understudy.mesh/pkg/contract"
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
	Lifetime                         // time.Duration, at most ten years
	KeepMode                         // bool: whether auto
	RootsLife                        // time.Duration; negative for leaf
	Ratio                            // float64, 0 to 1
	Seconds                          // time.Duration, as a whole number of seconds
	Port                             // uint16, not 0
	PortOrOff                        // uint16
	Count                            // int, not negative
	Cores                            // int: a number of cores, rounded up
	Size                             // uint32
	Memory                           // int64: bytes, with a unit of Go's if any; math.MaxInt64 for off
	IP                               // netip.Addr
	HostPort                         // string, host:port
	ListenAddrs                      // []netip.AddrPort
	StringList                       // []string: comma-separated, or a JSON array
	Prefixes                         // []netip.Prefix: comma-separated, or a JSON array
	RegexpList                       // []string, each a valid regular expression
	StringMap                        // map[string]string: a JSON object
	JSONObject                       // string: a JSON object
	TrafficPolicy                    // bool: whether REGISTRY_ONLY
	LogEncoding                      // bool: whether JSON
	TracerKind                       // Tracer: ProxyConfig.tracing in JSON
	ServiceKind                      // Service: a RemoteService of Istio's API in JSON
	ProbeKind                        // string: ProxyConfig.readinessProbe in JSON, "" for an empty one
	BucketMap                        // map[string][]float64: a JSON object
	CloudName                        // string: aws, azure, gcp, none
	JWTPolicy                        // bool: whether first-party-jwt
	AuthPolicy                       // bool: whether MUTUAL_TLS
	TakeoverMode                     // Takeover
	HungAction                       // bool: whether restart
	ListenerShape                    // bool: whether shared
	CompatMode                       // bool: whether istio
	CompliancePolicy                 // compliance.Policy
	Limit                            // uint32, 1 to 2147483647
	InterceptionMode                 // Interception
	Mark                             // uint32, not 0: decimal, or hexadecimal after 0x
	LogLevels                        // logging.Levels
	EnvoyLevels                      // string
	EnvoyComponents                  // string
)

// kinds has for each Kind its word in --help and on the reference page, and its parser, whose
// error says what would be right.
var kinds = [...]struct {
	word  string
	parse func(text string) (any, error)
}{
	String:           {"string", func(text string) (any, error) { return text, nil }},
	Path:             {"string", typed(parsePath)},
	Bool:             {"bool", typed(parseBool)},
	Switch:           {"on/off", typed(parseSwitch)},
	Duration:         {"duration", typed(parseDuration)},
	Lifetime:         {"duration", typed(parseLifetime)},
	KeepMode:         {"enum", oneOf("off", "auto")},
	RootsLife:        {"duration", typed(parseRootsLife)},
	Ratio:            {"number", typed(parseRatio)},
	Seconds:          {"seconds", typed(parseSeconds)},
	Port:             {"port", typed(parsePort)},
	PortOrOff:        {"port", number[uint16](0, math.MaxUint16, "want a port from 1 to 65535, or 0 to turn it off")},
	Count:            {"number", number[int](0, maxCount, fmt.Sprintf("want a whole number from 0 to %d", maxCount))},
	Cores:            {"cores", typed(parseCores)},
	Size:             {"number", number[uint32](0, math.MaxUint32, "want a whole number")},
	Memory:           {"bytes", typed(parseMemory)},
	IP:               {"ip", typed(parseIP)},
	HostPort:         {"host:port", typed(parseHostPort)},
	ListenAddrs:      {"host:port", typed(parseListenAddrs)},
	StringList:       {"list", typed(parseList)},
	Prefixes:         {"list", typed(parsePrefixes)},
	RegexpList:       {"list", typed(parseRegexps)},
	StringMap:        {"map", typed(parseMap)},
	JSONObject:       {"json", typed(parseJSON)},
	TrafficPolicy:    {"enum", oneOf("ALLOW_ANY", "REGISTRY_ONLY")},
	LogEncoding:      {"enum", oneOf("TEXT", "JSON")},
	TracerKind:       {"json", typed(parseTracer)},
	ServiceKind:      {"json", typed(parseService)},
	ProbeKind:        {"json", typed(parseProbe)},
	BucketMap:        {"json", typed(parseBuckets)},
	CloudName:        {"enum", typed(parseCloud)},
	JWTPolicy:        {"enum", oneOf("third-party-jwt", "first-party-jwt")},
	AuthPolicy:       {"enum", oneOf("NONE", "MUTUAL_TLS")},
	TakeoverMode:     {"enum", typed(parseTakeover)},
	HungAction:       {"enum", oneOf("report", "restart")},
	ListenerShape:    {"enum", oneOf("each", "shared")},
	CompatMode:       {"enum", oneOf("none", "istio")},
	CompliancePolicy: {"enum", typed(compliance.Parse)},
	Limit:            {"number", number[uint32](1, math.MaxInt32, "want a whole number, 1 to 2147483647")},
	InterceptionMode: {"string", typed(parseInterception)},
	Mark:             {"string", typed(parseMark)},
	LogLevels:        {"levels", typed(logging.ParseLevels)},
	EnvoyLevels:      {"levels", typed(checkedText(contract.CheckEnvoyLevels))},
	EnvoyComponents:  {"levels", typed(checkedText(contract.CheckEnvoyComponents))},
}

// String is the word for a kind in --help and on the reference page.
func (k Kind) String() string {
	if k <= 0 || int(k) >= len(kinds) {
		return fmt.Sprintf("kind %d", int(k))
	}
	return kinds[k].word
}

// parse reads text as k.
func (k Kind) parse(text string) (any, error) { return kinds[k].parse(text) }

// typed hides the type that a parser returns.
func typed[T any](parse func(text string) (T, error)) func(text string) (any, error) {
	return func(text string) (any, error) { return parse(text) }
}

// number reads a whole number from least to most.
func number[T int | uint16 | uint32](least, most uint64, want string) func(text string) (any, error) {
	return func(text string) (any, error) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n < least || n > most {
			return nil, errors.New(want)
		}
		return T(n), nil
	}
}

// oneOf reads an enumeration of two: false for the first name, true for the second.
func oneOf(no, yes string) func(text string) (any, error) {
	return func(text string) (any, error) {
		if text != no && text != yes {
			return false, fmt.Errorf("want %s or %s", no, yes)
		}
		return text == yes, nil
	}
}

// maxDuration bounds every duration: a month is beyond any drain, and below the
// 2^32 seconds and milliseconds that Envoy's flags hold.
const maxDuration = 30 * 24 * time.Hour

// remedy replaces a parser's error by what would be right.
func remedy(err error, want string) error {
	if err == nil {
		return nil
	}
	return errors.New(want)
}

func parsePath(text string) (string, error) {
	if text == "" || strings.ContainsRune(text, 0) {
		return "", errors.New("want a path")
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

// maxLifetime bounds the life of a certificate: that of a root, which a leaf's cannot exceed.
const maxLifetime = 10 * 365 * 24 * time.Hour

func parseLifetime(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxLifetime {
		return 0, fmt.Errorf("want a duration from 0s to %s, such as 24h", maxLifetime)
	}
	return d, nil
}

// parseRootsLife reads leaf as a negative duration.
func parseRootsLife(text string) (time.Duration, error) {
	if text == "leaf" {
		return -1, nil
	}
	d, err := parseLifetime(text)
	return d, remedy(err, fmt.Sprintf("want leaf, or a duration from 0s to %s, such as 1h", maxLifetime))
}

func parseRatio(text string) (float64, error) {
	r, err := strconv.ParseFloat(text, 64)
	if err != nil || !(r >= 0 && r <= 1) {
		return 0, errors.New("want a number from 0 to 1, such as 0.5")
	}
	return r, nil
}

func parseSeconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	d := time.Duration(n) * time.Second
	if err != nil || d > maxDuration {
		return 0, fmt.Errorf("want a whole number of seconds, at most %d", int(maxDuration.Seconds()))
	}
	return d, nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("want a port from 1 to 65535")
	}
	return uint16(n), nil
}

// maxCount bounds counts of threads: more workers than any machine has cores.
const maxCount = 4096

// parseCores reads a CPU quantity as the downward API and resource limits write it:
// 2, 1.5 or 1500m.
func parseCores(text string) (int, error) {
	number, unit := text, 1.0
	if milli, ok := strings.CutSuffix(text, "m"); ok {
		number, unit = milli, 1000
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v >= 0 && v/unit <= maxCount) {
		return 0, errors.New("want a number of cores, such as 2 or 1500m")
	}
	return int(math.Ceil(v / unit)), nil
}

// parseMemory reads what Go's runtime takes as $GOMEMLIMIT (runtime/debug.SetMemoryLimit).
func parseMemory(text string) (int64, error) {
	if text == "off" {
		return math.MaxInt64, nil
	}
	number, shift := strings.TrimSuffix(text, "B"), 0
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if digits, ok := strings.CutSuffix(text, unit+"B"); ok {
			number, shift = digits, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, errors.New("want a number of bytes such as 134217728 or 128MiB, or off")
	}
	return n << shift, nil
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

func parseMap(text string) (m map[string]string, err error) {
	err = json.Unmarshal([]byte(text), &m)
	return m, remedy(err, "want a map of strings")
}

func parseJSON(text string) (string, error) {
	var m map[string]json.RawMessage
	err := json.Unmarshal([]byte(text), &m)
	return text, remedy(err, "want a JSON object")
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
		return 0, errors.New("want a number from 1 to 0xffffffff, decimal or after 0x hexadecimal")
	}
	return uint32(n), nil
}
