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

// parsed puts the value into a variable.
func parsed[T any](into *T, parse func(string) (T, error)) func(string) error {
	return func(v string) (err error) {
		*into, err = parse(v)
		return err
	}
}

func asIs(into *string) func(string) error {
	return parsed(into, func(v string) (string, error) { return v, nil })
}

func toggle(into *bool) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q: want true or false", v)
		}
		*into = b
		return nil
	}
}

func parseNumber(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number, for example 1337 or 0x539", v)
	}
	return uint32(n), nil
}

func parseTimeout(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q: want a duration, for example 5s", v)
	}
	return d, nil
}

// setMode accepts REDIRECT or TPROXY only. For Istio every other word is REDIRECT, and a
// misspelt TPROXY hides the clients' addresses silently.
func (o *Options) setMode(v string) error {
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

func (o *Options) setExcludeCIDRs(v string) (err error) {
	if strings.TrimSpace(v) == "*" {
		return fmt.Errorf("CIDR %q: every destination cannot be excluded; leave --istio-service-cidr out instead", v)
	}
	o.Config.ExcludeCIDRs, err = iptables.ParsePrefixList(v)
	return err
}

func (o *Options) setBackend(v string) error {
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
func (o *Options) setUIDs(v string) (err error) {
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

func (o *Options) setGIDs(v string) (err error) {
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

func (o *Options) setProxyMark(v string) (err error) {
	if v == "" {
		return nil
	}
	o.Config.ProxyMark, err = iptables.ParseMark(v)
	return err
}

func (o *Options) setIncludeGroups(v string) (err error) {
	if strings.TrimSpace(v) != "*" {
		o.Config.IncludeGroups, err = o.parseGroups(v)
	}
	return err
}

func (o *Options) parseGroups(v string) ([]uint32, error) {
	return iptables.ParseIDList(v, o.host.LookupGroup)
}
