package handoff

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Every stage with every event: the rows that there are, and nothing else. The golden
// is the protocol as people read it; a change of it is a change of the protocol.
func TestMoves(t *testing.T) {
	var text strings.Builder
	rows := 0
	for s := stage(0); s <= stageOver; s++ {
		for _, e := range allEvents() {
			to, err := s.next(e)
			if err != nil {
				if to != s || !strings.Contains(err.Error(), s.String()) || !strings.Contains(err.Error(), e.String()) {
					t.Errorf("%s, %s: goes to %s with %v", s, e, to, err)
				}
				continue
			}
			rows++
			fmt.Fprintf(&text, "%-17s  %-15s  %s\n", s, e, to)
		}
	}
	if rows != len(moves) {
		t.Errorf("%d pairs move, the table has %d rows: two rows for one pair", rows, len(moves))
	}
	golden, err := os.ReadFile("testdata/moves.txt")
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(golden) {
		t.Errorf("testdata/moves.txt differs; the table says:\n%s", text.String())
	}
}

func allEvents() []event {
	var events []event
	for k := range messageKind(len(messageNames)) {
		if k.known() {
			events = append(events, got(k))
		}
	}
	for _, a := range []act{actAccept, actRefuse, actGive, actRelease, actReport, actTimeout, actFetch, actReady, actCommit} {
		events = append(events, did(a))
	}
	return events
}

func TestMovesHaveAWayOut(t *testing.T) {
	fromChild := []messageKind{msgHello, msgWant, msgReady, msgCommitted, msgTerminate, msgInquire}
	for _, m := range moves {
		child := m.from >= childGreeting && m.from < stageOver
		if m.on.message != 0 && slices.Contains(fromChild, m.on.message) == child {
			t.Errorf("%s waits for %s, which its own side sends", m.from, m.on)
		}
		if m.to != stageOver && (m.to >= childGreeting) != child {
			t.Errorf("%s leads to the other side's %s", m.from, m.to)
		}
	}
	for s := parentGreeting; s < parentSettled; s++ {
		if _, err := s.next(did(actTimeout)); err != nil {
			t.Errorf("%s has no deadline", s)
		}
		if _, err := s.next(did(actRefuse)); err != nil && s != parentGreeting {
			t.Errorf("%s: the owner cannot end it", s)
		}
	}
	for s := parentGreeting; s < stageOver; s++ {
		if !reachable(parentGreeting, s) && !reachable(childGreeting, s) {
			t.Errorf("%s is never reached", s)
		}
	}
}

func reachable(from, to stage) bool {
	seen := map[stage]bool{from: true}
	for grown := true; grown; {
		grown = false
		for _, m := range moves {
			if seen[m.from] && !seen[m.to] {
				seen[m.to], grown = true, true
			}
		}
	}
	return seen[to]
}
