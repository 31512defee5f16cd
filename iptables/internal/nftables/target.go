package nftables

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// target writes what becomes of a packet.
func (w *nfWriter) target(t rule.Target, f rule.Family) {
	switch t.Verdict {
	case "RETURN":
		w.add("return", &expr.Verdict{Kind: expr.VerdictReturn})
	case "ACCEPT":
		w.add("accept", &expr.Verdict{Kind: expr.VerdictAccept})
	case "DROP":
		w.add("drop", &expr.Verdict{Kind: expr.VerdictDrop})
	case "REDIRECT":
		w.add("redirect to :"+fmt.Sprint(t.Port), constant(port16(t.Port)),
			&expr.Redir{RegisterProtoMin: register, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
	case "CT":
		w.add(fmt.Sprintf("ct zone set %d", t.Zone), constant(binary.NativeEndian.AppendUint16(nil, t.Zone)),
			&expr.Ct{Register: register, SourceRegister: true, Key: expr.CtKeyZONE})
	case "MARK":
		w.setMark(t.Mark)
	case "CONNMARK":
		packet := &expr.Meta{Key: expr.MetaKeyMARK, Register: register}
		connection := &expr.Ct{Key: expr.CtKeyMARK, Register: register}
		if t.Option == rule.SaveMark {
			connection.SourceRegister = true
			w.add("ct mark set meta mark", packet, connection)
		} else {
			packet.SourceRegister = true
			w.add("meta mark set ct mark", connection, packet)
		}
	case rule.TPROXY: // marked only if there is a socket: a mark alone would turn the packet round
		version := tproxyFamilies[f]
		w.add("tproxy "+version.words+"to :"+fmt.Sprint(t.Port), constant(port16(t.Port)),
			&expr.TProxy{Family: version.number, TableFamily: unix.NFPROTO_INET, RegPort: register})
		w.setMark(t.Mark)
		w.add("accept", &expr.Verdict{Kind: expr.VerdictAccept})
	default:
		chain := nfChainName(t.Verdict)
		w.add("jump "+chain, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
	}
}

// tproxyFamilies are the IP versions that a TPROXY expression can be for, in nft's words
// and as numbers: that of its rule.
var tproxyFamilies = map[rule.Family]struct {
	words  string
	number byte
}{
	rule.IPv4: {"ip ", unix.NFPROTO_IPV4},
	rule.IPv6: {"ip6 ", unix.NFPROTO_IPV6},
	rule.Both: {"", unix.NFPROTO_UNSPEC},
}

func (w *nfWriter) setMark(mark uint32) {
	w.add("meta mark set "+markText(mark), constant(native32(mark)), &expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true})
}

// constant puts a value into the register.
func constant(data []byte) expr.Any { return &expr.Immediate{Register: register, Data: data} }
