package iptablescmd

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
)

// These functions apply a setting's value. Their errors have the value and what would be
// right; Parse adds where it comes from.

type setter = func(o *Options, value string) error

func port(field func(*iptables.Config) *uint16) setter {
	return func(o *Options, v string) (err error) {
		*field(&o.Config), err = iptables.ParsePort(v)
		return err
	}
}

func ports(field func(*iptables.Config) *[]uint16) setter {
	return func(o *Options, v string) (err error) {
		*field(&o.Config), err = iptables.ParsePortList(v)
		return err
	}
}

func interfaces(field func(*iptables.Config) *[]string) setter {
	return func(o *Options, v string) (err error) {
		*field(&o.Config), err = iptables.ParseInterfaceList(v)
		return err
	}
}

func toggle(field func(*Options) *bool) setter {
	return func(o *Options, v string) error {
		if v == "" {
			return nil
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q: want true or false", v)
		}
		*field(o) = b
		return nil
	}
}

func number(field func(*iptables.Config) *uint32) setter {
	return func(o *Options, v string) error {
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			return fmt.Errorf("%q: want a number, for example 1337 or 0x539", v)
		}
		*field(&o.Config) = uint32(n)
		return nil
	}
}

func setProbeTimeout(o *Options, v string) (err error) {
	if o.probeTimeout, err = time.ParseDuration(v); err != nil || o.probeTimeout <= 0 {
		return fmt.Errorf("%q: want a duration, for example 5s", v)
	}
	return nil
}

// setMode accepts REDIRECT or TPROXY only. For Istio every other word is REDIRECT, and a
// misspelt TPROXY hides the clients' addresses silently.
func setMode(o *Options, v string) error {
	switch v {
	case "", "REDIRECT":
		o.Config.TPROXY = false
	case "TPROXY":
		o.Config.TPROXY = true
	default:
		return fmt.Errorf("mode %q: want REDIRECT or TPROXY", v)
	}
	return nil
}

func setInboundPorts(o *Options, v string) (err error) {
	o.Config.InboundPorts, err = iptables.ParsePorts(v)
	return err
}

func setIncludeCIDRs(o *Options, v string) (err error) {
	o.Config.IncludeCIDRs, err = iptables.ParsePrefixes(v)
	return err
}

func setExcludeCIDRs(o *Options, v string) (err error) {
	if strings.TrimSpace(v) == "*" {
		return fmt.Errorf("CIDR %q: every destination cannot be excluded; leave --istio-service-cidr out instead", v)
	}
	o.Config.ExcludeCIDRs, err = iptables.ParsePrefixList(v)
	return err
}

func setLoopback(o *Options, v string) (err error) {
	o.Config.LoopbackV4, err = iptables.ParsePrefix(v)
	return err
}

func setBackend(o *Options, v string) error {
	switch b := rule.Backend(v); b {
	case rule.Auto, rule.Legacy, rule.NFT:
		o.Config.Backend = b
		return nil
	}
	return fmt.Errorf("%q: want %s or %s", v, rule.Legacy, rule.NFT)
}

// noIDs stands for no user, or no group, of the proxy: its traffic is then told by another
// property, such as its mark.
const noIDs = "none"

// setUIDs sets the proxy's users: by default the user in ENVOY_USER, if the image has it,
// else Istio's.
func setUIDs(o *Options, v string) (err error) {
	if v == noIDs {
		o.Config.UIDs = nil
		return nil
	}
	if v == "" {
		if uid, err := o.host.LookupUser(o.envoyUser); err == nil {
			v = uid
		} else {
			v = strconv.Itoa(iptables.DefaultProxyID)
		}
	}
	o.Config.UIDs, err = proxyIDs(v, o.host.LookupUser)
	return err
}

func setGIDs(o *Options, v string) (err error) {
	switch v {
	case "":
		o.Config.GIDs = o.Config.UIDs
		return nil
	case noIDs:
		o.Config.GIDs = nil
		return nil
	}
	o.Config.GIDs, err = proxyIDs(v, o.host.LookupGroup)
	return err
}

// proxyIDs parses ids, at least one: with a list of only commas the proxy's own traffic
// would loop.
func proxyIDs(v string, lookup func(string) (string, error)) ([]uint32, error) {
	ids, err := iptables.ParseIDList(v, lookup)
	if err == nil && len(ids) == 0 {
		err = fmt.Errorf("%q names nobody: want ids, or %s", v, noIDs)
	}
	return ids, err
}

func setProxyMark(o *Options, v string) (err error) {
	if v == "" {
		return nil
	}
	o.Config.ProxyMark, err = iptables.ParseMark(v)
	return err
}

func setIncludeGroups(o *Options, v string) (err error) {
	if strings.TrimSpace(v) != "*" {
		o.Config.IncludeGroups, err = iptables.ParseIDList(v, o.host.LookupGroup)
	}
	return err
}

func setExcludeGroups(o *Options, v string) (err error) {
	o.Config.ExcludeGroups, err = iptables.ParseIDList(v, o.host.LookupGroup)
	return err
}
