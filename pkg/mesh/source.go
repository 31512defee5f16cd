package mesh

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"understudy.mesh/pkg/mesh/internal/document"
)

// Source owns a directory of Istio YAML and the watch on it. Load, then Run; Report at any time.
type Source struct {
	o   Options
	log *slog.Logger

	mu       sync.Mutex // guards what follows
	dir      *directory
	seed     maphash.Seed
	registry *Registry
	problem  string          // why the directory is not taken
	told     map[string]bool // what was logged and still holds
}

// NewSource returns the source of a directory, and reads nothing of it yet. It is an error when dir cannot be read or
// is no directory, or when o cannot work.
func NewSource(dir string, o Options, log *slog.Logger) (*Source, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err == nil {
		_, err = os.ReadDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open configuration directory: %w", err)
	}
	return &Source{o: o, log: log, dir: newDirectory(dir, o), seed: maphash.MakeSeed(), told: map[string]bool{}}, nil
}

// Load reads the directory for the first time. Bad documents are logged and reported, and do not fail it; what does is a
// directory that cannot be read or has too much, and documents of kinds that restrict access, unless Options.AllowIgnored: to serve
// without a restriction that somebody wrote down is worse than not to serve.
func (s *Source) Load() (*Registry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.dir.scan(); err != nil {
		return nil, fmt.Errorf("read configuration directory %s: %w", s.dir.path, err)
	}
	if forbidden := s.dir.forbidden(); len(forbidden) > 0 {
		return nil, fmt.Errorf("read configuration directory %s: %s", s.dir.path, strings.Join(forbidden, "; "))
	}
	registry, err := s.assemble()
	if err != nil {
		return nil, fmt.Errorf("read configuration directory %s: %w", s.dir.path, err)
	}
	s.registry = registry
	return s.registry, nil
}

// assemble makes a registry of what was read, unless there are more hosts than may be: then the one before is to stay.
func (s *Source) assemble() (*Registry, error) {
	r := s.dir.registry(s.o, s.seed)
	if whole := s.tell(); whole {
		r.madeOf = s.dir.digest()
	}
	if n := len(r.services); s.o.MaxHosts > 0 && n > s.o.MaxHosts {
		return nil, fmt.Errorf("the documents have %d hosts, at most %d are taken: remove some, or raise UNDERSTUDY_MAX_HOSTS", n, s.o.MaxHosts)
	}
	return r, nil
}

// rescan reads what changed and returns the new registry, or nil when the good state is as before.
func (s *Source) rescan() (changed *Registry, unsettled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := s.read()
	if err != nil {
		if s.problem == "" {
			s.log.Warn("configuration directory is not taken, the last good state stays", "directory", s.dir.path, "error", err)
		}
		s.problem = err.Error()
		return nil, false
	}
	if s.problem != "" {
		s.log.Info("configuration directory is taken again", "directory", s.dir.path)
		s.problem = ""
	}
	if s.registry != nil && next.sum == s.registry.sum {
		return nil, s.dir.unsettled
	}
	s.registry = next
	return next, s.dir.unsettled
}

func (s *Source) read() (*Registry, error) {
	if err := s.dir.scan(); err != nil {
		return nil, err
	}
	return s.assemble()
}

// tell logs each trouble once, and once more when it is over. It says whether each document is in force as the files have it. The caller
// holds mu.
func (s *Source) tell() (whole bool) {
	now := map[string]bool{}
	whole = true
	for doc := range s.documents() {
		whole = whole && doc.Status != statusStale && doc.Status != statusError
		if doc.Status == statusOK || doc.ofBadFile {
			continue
		}
		line := doc.text()
		now[line] = true
		if s.told[line] {
			continue
		}
		switch doc.Status {
		case statusIgnored:
			s.log.Info("document ignored: " + line)
		case statusWarning:
			s.log.Warn("document in force, but for this: " + line)
		case statusStale:
			s.log.Error("bad document, its last good version stays: " + line)
		default:
			s.log.Error("bad document: " + line)
		}
	}
	for line := range s.told {
		if !now[line] {
			s.log.Info("no longer so: " + line)
		}
	}
	s.told = now
	return whole
}

// text is the document's place, name and trouble in one line.
func (d Document) text() string {
	var b strings.Builder
	b.WriteString(d.Where())
	if d.Kind != "" {
		fmt.Fprintf(&b, ": %s %s/%s", d.Kind, d.Namespace, d.Name)
	}
	if d.Field != "" {
		b.WriteString(": " + d.Field)
	}
	return b.String() + ": " + d.Reason
}

// Report returns the state of every document, for people; it may be called at any time from any goroutine.
func (s *Source) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{Directory: s.dir.path, Problem: s.problem, Documents: slices.Collect(s.documents())}
	if s.registry != nil {
		r.Services = len(s.registry.services)
	}
	return r
}

// Counts is how many documents have each status; every status is there.
func (s *Source) Counts() map[Status]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[Status]int{statusOK: 0, statusWarning: 0, statusError: 0, statusStale: 0, statusIgnored: 0}
	for d := range s.documents() {
		counts[d.Status]++
	}
	return counts
}

// documents yields what the report has to say, in the order of files and documents.
func (s *Source) documents() iter.Seq[Document] {
	return func(yield func(Document) bool) {
		for _, f := range s.dir.files {
			if f.err != nil && !yield(Document{File: f.name, Status: statusError, Reason: f.err.Error()}) ||
				f.err == nil && len(f.docs) == 0 && !yield(Document{File: f.name, Status: statusIgnored, Reason: "holds no document"}) {
				return
			}
			for i := range f.docs {
				if !yield(documentOf(f, &f.docs[i])) {
					return
				}
			}
		}
	}
}

func documentOf(f *fileState, doc *docState) Document {
	d := Document{
		File: f.name, Index: doc.index, Item: doc.item, Line: doc.line, ofBadFile: f.err != nil,
		Kind: doc.kind, Namespace: doc.namespace, Name: doc.name, Status: doc.status,
	}
	switch {
	case doc.kept:
		d.Status = statusStale
	case doc.conflict != nil:
		d.Status = statusError
	case doc.status == statusOK && (doc.exception != nil || doc.remark != nil):
		d.Status = statusWarning
	}
	if err := document.Join(doc.err, doc.conflict, doc.exception, doc.remark); err != nil {
		d.Field, d.Reason = err.Field, err.Reason
	}
	if doc.status == statusError && doc.obj != nil {
		d.Reason += "; until it is right, the traffic that it would guard is refused (failStrategy)"
	}
	return d
}

// Run watches the directory until ctx ends, and calls changed, one call at a time, whenever the good state has changed
// since Load or the last call. A change is seen within 2 s, whatever the watch of the kernel misses. It returns nil once
// ctx was cancelled, and no goroutine is left then.
func (s *Source) Run(ctx context.Context, changed func(*Registry)) error {
	w := newWatch(s.dir.path, s.log)
	defer w.close()
	for {
		next, unsettled := s.rescan()
		if next != nil {
			changed(next)
		}
		if !w.wait(ctx, unsettled, s.foreign()) {
			return nil
		}
	}
}

func (s *Source) foreign() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dir.foreign
}
