package mesh

import "fmt"

// Status says what a document of the directory contributes.
type Status string

const (
	// statusOK: the document is in force.
	statusOK Status = "ok"
	// statusWarning: the document is in force, but for what Reason names.
	statusWarning Status = "warning"
	// statusError: nothing of the document is in force, because it is bad or because of another one; Reason says why.
	statusError Status = "error"
	// statusStale: the document is bad, or cannot be in force beside others, and its version before is still in force.
	statusStale Status = "stale"
	// statusIgnored: nothing here uses the document.
	statusIgnored Status = "ignored"
)

// Document is one line of a Report: a document, or a file that could not be read (Index 0).
type Document struct {
	File      string `json:"file"`            // its name in the directory
	Index     int    `json:"index,omitempty"` // the document's number in the file, from 1
	Item      int    `json:"item,omitempty"`  // the item's number in a List, from 1
	Line      int    `json:"line,omitempty"`  // where the document begins, from 1
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Status    Status `json:"status"`
	Field     string `json:"field,omitempty"`  // the path of the field that is wrong
	Reason    string `json:"reason,omitempty"` // what is wrong, and what would be right
	ofBadFile bool   // the file's own line says it all
}

// Bad says whether something of the document is not in force that was to be.
func (d Document) Bad() bool {
	return d.Status == statusError || d.Status == statusStale || d.Status == statusWarning
}

// Wrong is what is wrong with it, and what is in force instead.
func (d Document) Wrong() string {
	text := d.Reason
	if d.Field != "" {
		text = d.Field + ": " + text
	}
	if d.Status == statusStale {
		text += " (its version before is in force)"
	}
	return text
}

// Where returns the document's place as people write it: file, document number, item, line.
func (d Document) Where() string {
	if d.Index == 0 {
		return d.File
	}
	s := fmt.Sprintf("%s: document %d", d.File, d.Index)
	if d.Item > 0 {
		s += fmt.Sprintf(" item %d", d.Item)
	}
	return s + fmt.Sprintf(" (line %d)", d.Line)
}

// Report is the state of the directory, for people.
type Report struct {
	Directory string     `json:"directory"`
	Problem   string     `json:"problem,omitempty"` // why the directory itself cannot be read now; the documents are the last good ones
	Services  int        `json:"services"`          // hosts in force
	Documents []Document `json:"documents"`         // in the order of file and document
}
