package handoff

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// messageKind is the type byte of a frame. Numbers are never given twice.
type messageKind uint8

// "child" is the newcomer, which connects; "parent" the generation that listens.
const (
	msgHello      messageKind = 1  // child: who I am, which protocols I speak
	msgWelcome    messageKind = 2  // parent: who I am, the protocol from here on
	msgRefused    messageKind = 3  // parent: why not; then it closes
	msgState      messageKind = 4  // parent: one part of one component's state (body), or all of it (a descriptor)
	msgStateEnd   messageKind = 5  // parent: that was all
	msgWant       messageKind = 6  // child: I am able to serve, give me the sockets
	msgSockets    messageKind = 7  // parent: up to 64 sockets, names of some that are gone
	msgSocketsEnd messageKind = 8  // parent: that was all
	msgReady      messageKind = 9  // child: I accept on all of them
	msgReleased   messageKind = 10 // parent: I have let go
	msgCommitted  messageKind = 11 // child: I hold everything
	msgSettled    messageKind = 12 // parent: I cannot take back any more, and drain
	msgDrained    messageKind = 13 // parent: so many connections are left
	msgTerminate  messageKind = 14 // child: end your drain now. No release sends it; it is ignored
	msgAbort      messageKind = 15 // either: I give up, and why; then it closes
	msgInquire    messageKind = 16 // anybody: what is your role
	msgReport     messageKind = 17 // parent: this is my role
	msgPing       messageKind = 18 // either: are you there
	msgPong       messageKind = 19 // either: yes
	msgUnknown    messageKind = 20 // either: your last message means nothing to me
)

var messageNames = [...]string{
	msgHello: "hello", msgWelcome: "welcome", msgRefused: "refused", msgState: "state", msgStateEnd: "state-end",
	msgWant: "want", msgSockets: "sockets", msgSocketsEnd: "sockets-end", msgReady: "ready", msgReleased: "released",
	msgCommitted: "committed", msgSettled: "settled", msgDrained: "drained", msgTerminate: "terminate", msgAbort: "abort",
	msgInquire: "inquire", msgReport: "report", msgPing: "ping", msgPong: "pong", msgUnknown: "unknown",
}

// known tells whether this release has a meaning for the message.
func (k messageKind) known() bool { return int(k) < len(messageNames) && messageNames[k] != "" }

func (k messageKind) String() string {
	if k.known() {
		return messageNames[k]
	}
	return fmt.Sprintf("message %d", uint8(k))
}

// maxReason keeps a reason, which comes from outside, to what a log line takes.
const maxReason = 1024

// The heads. A field is never renamed, never given another meaning, and absent is zero.
type (
	helloHead struct {
		Min      uint8    `json:"min"`
		Max      uint8    `json:"max"`
		Identity Identity `json:"identity"`
		// Files are the components that the child takes as a descriptor. The first releases send none, and take none.
		Files []string `json:"files,omitempty"`
	}
	welcomeHead struct {
		Protocol uint8    `json:"protocol"`
		Identity Identity `json:"identity"`
	}
	refusedHead struct {
		Code   RefusalCode `json:"code"`
		Reason string      `json:"reason"`
	}
	stateHead struct {
		Component string `json:"component"`
	}
	stateEndHead struct {
		Components int `json:"components"`
	}
	socketsHead struct {
		Names []string `json:"names,omitempty"` // one for each descriptor, in their order
		Gone  []string `json:"gone,omitempty"`  // given earlier, no longer there; before Names
	}
	socketsEndHead struct {
		Count int `json:"count"`
		Gone  int `json:"gone"`
	}
	abortHead struct {
		Code   AbortCode `json:"code,omitempty"` // the first releases send none
		Reason string    `json:"reason"`
	}
	inquireHead struct {
		Follow bool `json:"follow,omitempty"`
	}
	unknownHead struct {
		Kind uint8 `json:"kind"`
	}
	emptyHead struct{}
)

// Drained is how far the old generation's drain has come.
type Drained struct {
	// Left is the number of connections that it still serves.
	Left int `json:"left"`
	// Done: its Envoy has exited; nothing more will be said.
	Done bool `json:"done,omitempty"`
}

// Role is what a generation is doing. Other releases may know others.
type Role string

// The roles of this release.
const (
	RoleStarting   Role = "starting"
	RoleServing    Role = "serving"
	RoleHandingOff Role = "handing-off" // it serves, and a newcomer is taking over
	RoleDraining   Role = "draining"
	RoleStandby    Role = "standby"
)

// Report is what a generation tells everybody who asks (of the same uid).
type Report struct {
	Identity Identity  `json:"identity"`
	Role     Role      `json:"role"`
	Since    time.Time `json:"since"` // when the role began
	// Leaving: it was asked to stop. Whoever stands by, also an older one, may take over from
	// one that serves then.
	Leaving bool `json:"leaving,omitempty"`
	// Left is the number of connections, while draining.
	Left int `json:"left,omitempty"`
	// Details is the owner's, for people: socket names, the last attempt and why it
	// failed. A JSON value of at most 48 KiB.
	Details json.RawMessage `json:"details,omitempty"`
}

// RefusalCode says in a word why a newcomer was refused.
type RefusalCode string

// Why a newcomer is refused. Other releases may know more; treat those as RefusedBusy.
const (
	RefusedBusy     RefusalCode = "busy"     // another newcomer is at it: try again
	RefusedOlder    RefusalCode = "older"    // stand by
	RefusedMoved    RefusalCode = "moved"    // this generation serves no more: ask another
	RefusedProtocol RefusalCode = "protocol" // no version in common
	RefusedPod      RefusalCode = "pod"      // of another pod
	RefusedUnready  RefusalCode = "unready"  // starting or stopping: try again
)

// refusal is what a refused message says, as an error.
func refusal(f frame) error {
	head, err := decodeHead[refusedHead](f)
	if err != nil {
		return err
	}
	return &RefusedError{head.Code, cleanReason(head.Reason)}
}

// newFrame encodes one message.
func newFrame(kind messageKind, head any) (frame, error) {
	b, err := json.Marshal(head)
	if err != nil {
		return frame{}, fmt.Errorf("encode %s: %w", kind, err)
	}
	return frame{kind: kind, head: b}, nil
}

// decodeHead decodes the head of f; unknown fields are skipped, an empty head is the
// zero value.
func decodeHead[T any](f frame) (head T, err error) {
	if len(f.head) == 0 {
		return head, nil
	}
	if err := json.Unmarshal(f.head, &head); err != nil {
		return head, fmt.Errorf("read %s: %w", f.kind, err)
	}
	return head, nil
}

// cleanReason makes text from outside fit for a log line.
func cleanReason(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), maxReason)], "")
}
