package wire

import (
	"errors"
	"slices"

	"github.com/miekg/dns"
)

var errUnrelated = errors.New("no record of it is of the name that was asked for")

// related takes out of a server's answer what the question did not ask for, so
// that nobody who looks at it believes that (RFC 5452 section 6). There remain
// the records of the question's name and of those that it is an alias of, the
// addresses of what these name, and the authority section, which says how long
// "no" may be kept.
func related(m *dns.Msg) error {
	names := aliases(m)
	had := len(m.Answer) > 0
	m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
		return !names[dns.CanonicalName(rr.Header().Name)] && !isDNAME(rr)
	})
	if had && len(m.Answer) == 0 {
		return errUnrelated
	}
	named := map[string]bool{}
	for _, list := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range list {
			if name := addressee(rr); name != "" {
				named[dns.CanonicalName(name)] = true
			}
		}
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		return !named[dns.CanonicalName(rr.Header().Name)] || !isAddress(rr)
	})
	return nil
}

// aliases returns the question's name and those that CNAME records lead to from
// there, in whatever order they come.
func aliases(m *dns.Msg) map[string]bool {
	next := map[string]string{}
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok {
			next[dns.CanonicalName(c.Hdr.Name)] = dns.CanonicalName(c.Target)
		}
	}
	names := map[string]bool{}
	for name, ok := dns.CanonicalName(m.Question[0].Name), true; ok && !names[name]; name, ok = next[name] {
		names[name] = true
	}
	return names
}

// isDNAME says whether rr is a DNAME record or its signature. They stand above
// the names that are asked for, and speak to resolvers that check signatures:
// others go by the CNAME that comes with them (RFC 6672 section 3.1).
func isDNAME(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.DNAME:
		return true
	case *dns.RRSIG:
		return rr.TypeCovered == dns.TypeDNAME
	}
	return false
}

func isAddress(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A, *dns.AAAA:
		return true
	case *dns.RRSIG:
		return rr.TypeCovered == dns.TypeA || rr.TypeCovered == dns.TypeAAAA
	}
	return false
}

// addressee is the name whose addresses servers add for rr, "" when there is none.
func addressee(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.SRV:
		return rr.Target
	case *dns.MX:
		return rr.Mx
	case *dns.NS:
		return rr.Ns
	case *dns.NAPTR:
		return rr.Replacement
	case *dns.SVCB:
		return serviceTarget(rr)
	case *dns.HTTPS:
		return serviceTarget(&rr.SVCB)
	}
	return ""
}

// serviceTarget returns the target of an SVCB or HTTPS record, which may be the
// record's own name, RFC 9460 section 2.5.2.
func serviceTarget(rr *dns.SVCB) string {
	if rr.Target == "." {
		return rr.Hdr.Name
	}
	return rr.Target
}
