package freeport

import (
	"fmt"
	"net"
	"testing"
)

// TestGetTellsNoPortTwice takes so many of them that a choice by chance alone would repeat itself.
func TestGetTellsNoPortTwice(t *testing.T) {
	seen := map[uint16]bool{}
	for _, port := range GetN(t, 400) {
		if seen[port] {
			t.Fatalf("%d was given twice", port)
		}
		seen[port] = true
	}
}

// TestPortsComeBack: a port is free for other tests when its own is over.
func TestPortsComeBack(t *testing.T) {
	var port uint16
	t.Run("has a port", func(t *testing.T) { port = Get(t) })
	claim, err := net.Listen("unix", fmt.Sprintf("@understudy-test-port-%d", port))
	if err != nil {
		t.Fatal(err)
	}
	claim.Close()
}
