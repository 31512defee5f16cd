package agent

import (
	"testing"
	"time"

	"understudy.mesh/pkg/config"
)

func TestDrainDeadlineOfWhatCameLast(t *testing.T) {
	letGo := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	settled := letGo.Add(2 * time.Second)
	for drain, want := range map[time.Duration]time.Duration{ // since settled
		time.Minute:            58 * time.Second,
		4 * time.Second:        2 * time.Second,
		3 * time.Second:        2 * time.Second,
		2 * time.Second:        2 * time.Second,
		500 * time.Millisecond: 500 * time.Millisecond,
		0:                      0,
	} {
		a := &Agent{cfg: &config.Config{UpgradeDrainDuration: drain}, loop: loop{handOff: handOff{released: letGo}}}
		if got := a.drainDeadline(settled).Sub(settled); got != want {
			t.Errorf("--upgradeDrainDuration %v: what was accepted last has %v, want %v", drain, got, want)
		}
	}
}
