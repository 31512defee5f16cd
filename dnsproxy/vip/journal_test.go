package vip

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

const journalSuffix = ".journal"

// onDisk is what a new agent finds, without touching the files: of the journal too, and of the
// file alone, as a release finds it that does not know the journal.
func onDisk(t testing.TB, path string, now *dnstest.Clock) (all, alone indexes) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "vips.json")
	for _, suffix := range []string{"", journalSuffix} {
		if data, err := os.ReadFile(path + suffix); err == nil {
			if err := os.WriteFile(copied+suffix, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	old := openVIPs(t, "", "240.240.0.0/26", now)
	if old.allocation, err = old.decode(data); err != nil {
		t.Fatal(err)
	}
	return openVIPs(t, copied, "240.240.0.0/26", now).indexes(), old.indexes()
}

// TestVIPJournal: after each change of whatever kind a new agent finds everything, and an older
// release does after Compact and after a start.
func TestVIPJournal(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	path, now := filepath.Join(t.TempDir(), "vips.json"), dnstest.NewClock()
	v := openVIPs(t, path, "240.240.0.0/26", now)
	behind := false // the file was, at some time
	for step := range 400 {
		now.Add(time.Duration(random.IntN(5)) * time.Minute)
		switch random.IntN(10) {
		case 0:
			other := openVIPs(t, "", "240.240.0.0/26", now)
			_, _ = other.Assign(someHosts(random))
			if _, err := v.Import(other.Export()); err != nil {
				t.Fatal(err)
			}
		case 1:
			v.Compact()
			if _, alone := onDisk(t, path, now); !alone.equal(v.indexes()) {
				t.Fatalf("step %d: an older release finds %v, want %v", step, alone, v.indexes())
			}
		case 2:
			v = openVIPs(t, path, "240.240.0.0/26", now) // it was killed
			if _, alone := onDisk(t, path, now); !alone.equal(v.indexes()) {
				t.Fatalf("step %d: after a start an older release finds %v, want %v", step, alone, v.indexes())
			}
		default:
			_, _ = v.Assign(someHosts(random)) // some may get none
		}
		if len(v.assigned) == 0 {
			continue
		}
		all, alone := onDisk(t, path, now)
		if !all.equal(v.indexes()) {
			t.Fatalf("step %d: the files have %v, want %v", step, all, v.indexes())
		}
		behind = behind || !alone.equal(all)
	}
	if !behind {
		t.Error("every change was written whole")
	}
}

func someHosts(random *rand.Rand) (hosts []string) {
	for i := range 80 { // more than there are addresses
		if random.IntN(2) == 0 {
			hosts = append(hosts, fmt.Sprintf("host-%d.example", i))
		}
	}
	return hosts
}

// TestVIPJournalIsBounded: what an older release can miss is 64 KiB of changes.
func TestVIPJournalIsBounded(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "vips.json"), dnstest.NewClock()
	v := openVIPs(t, path, "240.240.0.0/16", now)
	hosts := []string{"a.example"}
	for i := range 2000 {
		hosts = append(hosts, fmt.Sprintf("host-%d.example", i))
		assign(t, v, hosts...)
		if info, err := os.Stat(path + journalSuffix); err == nil && info.Size() > maxJournal {
			t.Fatalf("the journal has %d bytes after %d changes", info.Size(), i)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := v.decode(data)
	if err != nil || len(a.assigned) < 1000 {
		t.Errorf("the file has %d of %d hosts, %v", len(a.assigned), len(hosts), err)
	}
}

// TestVIPsAfterAnOlderRelease: an older release has served meanwhile, and wrote the file; what it
// wrote counts.
func TestVIPsAfterAnOlderRelease(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "vips.json"), dnstest.NewClock()
	v := openVIPs(t, path, "240.240.0.0/26", now)
	assign(t, v, "a.example")
	assign(t, v, "a.example", "b.example")
	old := with(t, now, "", indexes{ofHosts{"a.example": 3, "c.example": 4}, nil})
	old.config.V4 = v.config.V4
	if err := os.WriteFile(path, old.Export(), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := openVIPs(t, path, "240.240.0.0/26", now).indexes(); !got.equal(old.indexes()) {
		t.Errorf("have %v, want %v", got, old.indexes())
	}
	// One that did not notice does not write into the void.
	assign(t, v, "a.example", "b.example", "d.example")
	if got, _ := onDisk(t, path, now); !got.equal(v.indexes()) {
		t.Errorf("have %v, want %v", got, v.indexes())
	}
}

// TestDamagedVIPJournal: what comes before the damage counts, and it is said.
func TestDamagedVIPJournal(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(data []byte) []byte { return data[:len(data)-1] },
		"flipped": func(data []byte) []byte { data[len(data)-3] ^= 1; return data },
		"garbage": func(data []byte) []byte { return append(data, "garbage"...) },
	} {
		t.Run(name, func(t *testing.T) {
			path, now, log := filepath.Join(t.TempDir(), "vips.json"), dnstest.NewClock(), new(dnstest.Log)
			v := openVIPs(t, path, "240.240.0.0/26", now)
			assign(t, v, "a.example")
			assign(t, v, "a.example", "b.example")
			want := v.indexes()
			if name != "garbage" {
				assign(t, v, "a.example", "b.example", "c.example")
			}
			data, err := os.ReadFile(path + journalSuffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+journalSuffix, damage(bytes.Clone(data)), 0o600); err != nil {
				t.Fatal(err)
			}
			reopened, err := Open(Config{
				Path: path, V4: netip.MustParsePrefix("240.240.0.0/26"), Now: now.Now, Log: slog.New(slog.NewTextHandler(log, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			if !reopened.indexes().equal(want) || !bytes.Contains([]byte(log.String()), []byte("the journal of the VIP file is damaged")) {
				t.Errorf("have %v, want %v; log: %s", reopened.indexes(), want, log)
			}
			if all, alone := onDisk(t, path, now); !all.equal(want) || !alone.equal(want) {
				t.Errorf("afterwards the files have %v and %v", all, alone)
			}
		})
	}
}

// FuzzVIPRecord: whatever a record says, no two hosts get one address, and what is taken in can be
// written and read again.
func FuzzVIPRecord(f *testing.F) {
	f.Add([]byte(`{"assigned":{"a":5},"freed":{"b":{"index":6,"at":"2026-01-02T03:00:00Z"}},"gone":["c"]}`))
	f.Add([]byte(`{"assigned":{"x":7}}`))
	f.Fuzz(func(t *testing.T, record []byte) {
		v := with(t, dnstest.NewClock(), "", indexes{ofHosts{"a": 1, "b": 2}, ofHosts{"c": 3}})
		a, err := v.decode(v.Export(), record)
		if err != nil {
			return
		}
		v.allocation = a
		seen := map[uint32]bool{}
		for _, index := range v.indexes().assigned {
			if seen[index] || !v.usable(index) {
				t.Fatalf("%v", v.indexes())
			}
			seen[index] = true
		}
		if _, err := v.decode(v.Export()); err != nil {
			t.Fatal(err)
		}
	})
}
