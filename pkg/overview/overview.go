// Package overview owns what one generation of the agent shows of itself at a glance: the data, as the agent fills it in, and the
// one order in which people read it, on the page /debug/ and in a terminal.
package overview

import (
	"net/netip"
	"time"

	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/pkg/contract"
)

// Path answers an [Overview] as JSON, on the status port for loopback only; /debug/ is the same as HTML.
const Path = "/debug/overview"

// MaxNames and maxErrors bound what is listed: it is to fit on a screen, and a table may have 100,000 names.
const (
	MaxNames  = 20
	maxErrors = 20
)

// Overview is what an agent does, in any role.
type Overview struct {
	Pod     string                 `json:"pod"` // NAME.NAMESPACE
	Upgrade contract.UpgradeStatus `json:"upgrade"`
	// Sidecar is nil in a standby, which has no Envoy.
	Sidecar *Sidecar `json:"sidecar,omitempty"`
}

// Sidecar is one Envoy with all that the agent does for it.
type Sidecar struct {
	Ready   bool   `json:"ready"`
	Tasks   []Task `json:"tasks"`
	Capture string `json:"capture"` // a sentence
	Config  Config `json:"config"`
	// Certificate is nil without istiod.
	Certificate *Certificate `json:"certificate,omitempty"`
	// DNS is nil without DNS capture.
	DNS *DNS `json:"dns,omitempty"`
}

// Task is one of those that readiness waits for.
type Task struct {
	Name   string `json:"name"`
	State  string `json:"state"` // done, waiting, failed or off
	Reason string `json:"reason,omitempty"`
}

// Config is where the configuration comes from, and what of it is not in force.
type Config struct {
	Directory string  `json:"directory,omitempty"` // of the files
	Hosts     int     `json:"hosts,omitempty"`     // of the files, in force
	Istiod    *Stream `json:"istiod,omitempty"`    // nil: files
	// Errors are the first maxErrors of so many.
	Errors      []Error `json:"errors,omitempty"`
	ErrorsCount int     `json:"errorsCount,omitempty"`
}

// Add notes one more error.
func (c *Config) Add(where, reason string) {
	if c.ErrorsCount++; len(c.Errors) < maxErrors {
		c.Errors = append(c.Errors, Error{where, reason})
	}
}

// Error is something that is not in force, or only in an earlier version.
type Error struct {
	Where  string `json:"where"`
	Reason string `json:"reason"`
}

// Stream is that to istiod.
type Stream struct {
	Address   string    `json:"address"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`               // of Connected
	LastError string    `json:"lastError,omitempty"` // why the last one ended
}

// Certificate is the workload's.
type Certificate struct {
	ID        string    `json:"id"`
	State     string    `json:"state"` // valid, expired or none
	Since     time.Time `json:"since,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	LastError string    `json:"lastError,omitempty"` // why there is no newer one
}

// DNS is what the agent answers, and whom it asks.
type DNS struct {
	Queries     uint64           `json:"queries"`
	NamesCount  int              `json:"namesCount"`
	Names       []Name           `json:"names"` // the first MaxNames
	VIPsUsed    int              `json:"vipsUsed"`
	VIPsLacking int              `json:"vipsLacking,omitempty"` // hosts that got none
	Servers     []upstream.Stats `json:"servers"`
}

// Name is one that the agent answers itself.
type Name struct {
	Host      string       `json:"host"`
	Addresses []netip.Addr `json:"addresses"`
	VIP       bool         `json:"vip,omitempty"`
	// LeadsTo is where connections go, under istiod by which of Envoy's clusters; "" where that is not known.
	LeadsTo string `json:"leadsTo,omitempty"`
}
