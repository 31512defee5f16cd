package iptables_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/iptables"
)

func TestParseLists(t *testing.T) {
	portList := func(s string) (string, error) { v, err := iptables.ParsePorts(s); return fmt.Sprint(v), err }
	cidrs := func(s string) (string, error) { v, err := iptables.ParsePrefixes(s); return fmt.Sprint(v), err }
	ids := func(s string) (string, error) {
		v, err := iptables.ParseIDList(s, func(name string) (string, error) {
			if name == "java" {
				return "2001", nil
			}
			return "", errors.New("unknown group " + name)
		})
		return fmt.Sprint(v), err
	}
	mark := func(s string) (string, error) { v, err := iptables.ParseMark(s); return fmt.Sprint(v), err }
	nics := func(s string) (string, error) { v, err := iptables.ParseInterfaceList(s); return fmt.Sprint(v), err }

	for _, tt := range []struct {
		name      string
		parse     func(string) (string, error)
		in, want  string
		errorSays string
	}{
		{"ports", portList, "80,443", "{false [80 443]}", ""},
		{"empty items", portList, ",6000,,7000,", "{false [6000 7000]}", ""},
		{"blanks and repetitions", portList, " 80, 443 ,80", "{false [80 443]}", ""},
		{"nothing", portList, "", "{false []}", ""},
		{"all", portList, "*", "{true []}", ""},
		{"the last", portList, "65535", "{false [65535]}", ""},
		{"port 0", portList, "80,0", "", `port "0": want a number from 1 to 65535`},
		{"port 65536", portList, "65536", "", `port "65536"`},
		{"range", portList, "80-90", "", `port "80-90"`},
		{"all among others", portList, "80,*", "", `port "*"`},
		{"sign", portList, "+80", "", `port "+80"`},

		{"a decimal mark", mark, "77", "77", ""},
		{"a hexadecimal mark", mark, "0xFFFFFFFF", "4294967295", ""},
		{"no mark", mark, "0x0", "", `mark "0x0": want a number from 1 to 0xffffffff`},
		{"too large a mark", mark, "4294967296", "", `mark "4294967296"`},
		{"a mark with a mask", mark, "0x1/0xff", "", `mark "0x1/0xff"`},
		{"hexadecimal without saying so", mark, "beef", "", `mark "beef"`},

		{"CIDRs", cidrs, "10.0.0.0/8,2001:db8::/32", "{false [10.0.0.0/8 2001:db8::/32]}", ""},
		{"all", cidrs, "*", "{true []}", ""},
		{"host bits", cidrs, "10.1.2.3/8,10.9.9.9/8", "{false [10.0.0.0/8]}", ""},
		{"addresses", cidrs, "172.1.1.2,::1", "{false [172.1.1.2/32 ::1/128]}", ""},
		{"IPv4-mapped", cidrs, "::ffff:10.0.0.0/104", "{false [10.0.0.0/8]}", ""},
		{"IPv4-mapped address", cidrs, "::ffff:10.0.0.1", "{false [10.0.0.1/32]}", ""},
		{"more than IPv4", cidrs, "::ffff:10.0.0.0/90", "", "write the IPv4 CIDR"},
		{"bits", cidrs, "10.0.0.0/33", "", `CIDR "10.0.0.0/33": want for example 10.0.0.0/8`},
		{"octets", cidrs, "10.0.0/8", "", `CIDR "10.0.0/8"`},
		{"zone", cidrs, "fe80::1%eth0", "", `CIDR "fe80::1%eth0"`},
		{"all among others", cidrs, "10.0.0.0/8,*", "", `CIDR "*"`},

		{"ids", ids, "1337,0,java,", "[1337 0 2001]", ""},
		{"unknown name", ids, "nobody-here", "", `id "nobody-here": want a number or a name known in this container: unknown group`},
		{"range", ids, "1-2", "", `id "1-2"`},
		{"too large", ids, "4294967296", "", `id "4294967296"`},

		{"interfaces", nics, "eth0,tap+,", "[eth0 tap+]", ""},
		{"option", nics, "-j", "", `interface "-j"`},
		{"quote", nics, `e"0`, "", `want a name of at most 15`},
		{"long", nics, "abcdefghijklmnop", "", `want a name of at most 15`},
	} {
		got, err := tt.parse(tt.in)
		if tt.errorSays != "" {
			if err == nil || !strings.Contains(err.Error(), tt.errorSays) {
				t.Errorf("%s: %q: error %v, want one that says %q", tt.name, tt.in, err, tt.errorSays)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %q: %s, %v; want %s", tt.name, tt.in, got, err, tt.want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"", "*", "80,443,", "0", "65536", "1,,2", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := iptables.ParsePorts(s)
		if err == nil && (slices.Contains(p.List, 0) || p.All && len(p.List) > 0) {
			t.Errorf("%q: %v", s, p)
		}
	})
}

func FuzzParsePrefixes(f *testing.F) {
	for _, s := range []string{"", "*", "10.1.0.0/8,", "::ffff:1.2.3.4/100", "fe80::1%eth0", "0.0.0.0/0", "::/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := iptables.ParsePrefixes(s)
		if err != nil {
			return
		}
		for _, c := range p.List {
			if !c.IsValid() || c != c.Masked() || c.Addr().Is4In6() || c.Addr().Zone() != "" {
				t.Errorf("%q: %v", s, c)
			}
			back, err := netip.ParsePrefix(c.String())
			if err != nil || back != c {
				t.Errorf("%q: %v does not read back: %v", s, c, err)
			}
		}
	})
}
