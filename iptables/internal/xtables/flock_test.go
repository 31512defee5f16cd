package xtables

import (
	"testing"
)

func TestFlockHolder(t *testing.T) {
	const locks = "1: FLOCK  ADVISORY  WRITE 967 fe:00:9986066 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 968 fe:00:77 0 EOF\n2: POSIX  ADVISORY  WRITE 5 00:2d:77 0 EOF\n3: FLOCK  ADVISORY  WRITE 12 00:2d:77 0 EOF\n\nx\n"
	for inode, want := range map[uint64]int{9986066: 967, 77: 12, 7: 0, 99860: 0} {
		if got := flockHolder(locks, inode); got != want {
			t.Errorf("inode %d: process %d, want %d", inode, got, want)
		}
	}
}
