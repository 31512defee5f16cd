package mesh

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"understudy.mesh/pkg/mesh/internal/document"
)

// docState is one document (or item of a List) as of the last scan.
type docState struct {
	decoded
	chunk             uint64 // hash of the whole document
	index, item, line int    // its place; item is 0 outside of Lists
	// What other documents do to a good one: conflict is why nothing of it is in force, exception what of it is not.
	conflict, exception *document.Error
	kept                bool // it has a conflict, and its version before is in force
}

// fileState is one file as of the last scan.
type fileState struct {
	name  string
	id    stamp
	fresh bool              // id can be trusted: the file did not change just before it was read
	sum   [sha256.Size]byte // of its bytes; zero where docs are not what they say
	err   error
	docs  []docState
}

// directory is the state of all files; it owns the rules of "last good". It is not safe for concurrent use.
type directory struct {
	path      string
	o         Options
	dec       *decoder
	files     []*fileState    // by name
	good      map[key]*object // good by themselves, and the last good ones of those that are not
	before    map[key]*object // good before the last scan; nil once registry has seen it
	refused   map[key]*object // what other documents keep from being in force, with the version that is instead, if any
	foreign   bool            // a file is a link that leads out of the directory, whose changes no watch reports
	unsettled bool            // a file was just emptied: perhaps its writer is not done
}

func newDirectory(path string, o Options) *directory {
	return &directory{path: path, o: o, dec: newDecoder(o), good: map[key]*object{}}
}

// emptyGrace is how long a file that was just emptied counts as one that somebody is about to fill: an editor that
// rewrites a file in place truncates it first, and nobody's services should flicker for that.
const emptyGrace = 500 * time.Millisecond

// scan reads what changed and works out the new state. On an error the state is the old one.
func (d *directory) scan() error {
	names, err := d.list()
	if err != nil {
		return err
	}
	seen, err := d.look(names)
	if err != nil {
		return err
	}
	old := make(map[string]*fileState, len(d.files))
	for _, f := range d.files {
		old[f.name] = f
	}
	d.unsettled = false
	files := make([]*fileState, 0, len(names))
	for i, name := range names {
		files = append(files, d.file(name, seen[i], old[name]))
	}
	d.files = files
	d.chooseVersions()
	return nil
}

// list returns the names of the configuration files, sorted, and notes whether one of them leads elsewhere.
func (d *directory) list() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			return nil, pe.Err
		}
		return nil, err
	}
	d.foreign = false
	var names []string
	for _, e := range entries {
		if !configName(e.Name()) {
			continue
		}
		names = append(names, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			d.foreign = d.foreign || d.leadsOut(e.Name())
		}
	}
	return names, nil
}

// look identifies the files. It is an error when they are too large together; what one of them alone is wrong with is in its sight.
func (d *directory) look(names []string) ([]sight, error) {
	var total int64
	seen := make([]sight, len(names))
	for i, name := range names {
		seen[i].id, seen[i].err = statFile(filepath.Join(d.path, name), d.o.maxFileBytes)
		total += seen[i].id.size
	}
	if total > d.o.maxBytes {
		return nil, fmt.Errorf("its %d files have %d bytes, at most %d are read: remove what no pod of this workload needs", len(names), total, d.o.maxBytes)
	}
	return seen, nil
}

// sight is a file as its directory has it, or why it cannot be read.
type sight struct {
	id  stamp
	err error
}

// leadsOut says whether a link's target is changed without this directory changing. The links of a ConfigMap
// (x.yaml -> ..data/x.yaml) are not such: they change when ..data, in this directory, is replaced.
func (d *directory) leadsOut(name string) bool {
	target, err := os.Readlink(filepath.Join(d.path, name))
	return err != nil || filepath.IsAbs(target) || filepath.Dir(filepath.Clean(target)) != "..data"
}

// file returns the state of one file: the old one when the file did not change.
func (d *directory) file(name string, seen sight, old *fileState) *fileState {
	if seen.err != nil {
		return failedFile(name, seen.err, old)
	}
	if old != nil && old.err == nil && old.fresh && old.id == seen.id {
		return old
	}
	data, id, err := readFile(filepath.Join(d.path, name), d.o.maxFileBytes)
	if err != nil {
		return failedFile(name, err, old)
	}
	now, chunks := d.o.now(), document.Split(data)
	if len(chunks) == 0 && old != nil && len(old.docs) > 0 && id.youngerThan(emptyGrace, now) {
		d.unsettled = true
		return &fileState{name: name, docs: old.docs}
	}
	f := &fileState{name: name, id: id, fresh: !id.youngerThan(stampStep, now), sum: sha256.Sum256(data)}
	f.docs = d.documents(chunks, old)
	if old != nil {
		f.docs = d.keepLastGood(f.docs, old.docs)
	}
	return f
}

// documents decodes the documents of a file, but for those that the file had before.
func (d *directory) documents(chunks []document.Chunk, old *fileState) []docState {
	var known map[uint64][]docState
	if old != nil {
		known = wholeDocuments(old.docs)
	}
	sums := make([]uint64, len(chunks))
	var fresh []document.Chunk
	for i, c := range chunks {
		sums[i] = maphash.Bytes(d.dec.seed, c.Text)
		if known[sums[i]] == nil {
			fresh = append(fresh, c)
		}
	}
	docs, trees := make([]docState, 0, len(chunks)), document.NewStream(fresh)
	for i, c := range chunks {
		if same := known[sums[i]]; same != nil {
			for _, doc := range same {
				doc.index, doc.line = i+1, c.Line
				docs = append(docs, doc)
			}
			continue
		}
		results := d.dec.document(trees, c, sums[i])
		for j, r := range results {
			doc := docState{decoded: r, chunk: sums[i], index: i + 1, line: c.Line}
			if len(results) > 1 {
				doc.item = j + 1
			}
			docs = append(docs, doc)
		}
	}
	return docs
}

// wholeDocuments returns the documents that need not be decoded again, by hash: those without a bad item.
func wholeDocuments(docs []docState) map[uint64][]docState {
	known := make(map[uint64][]docState, len(docs))
	for begin := 0; begin < len(docs); {
		end, good := begin, true
		for ; end < len(docs) && docs[end].index == docs[begin].index; end++ {
			good = good && (docs[end].status == statusOK || docs[end].status == statusIgnored)
		}
		if good {
			known[docs[begin].chunk] = docs[begin:end]
		}
		begin = end
	}
	return known
}

// keepLastGood puts the last good version in the place of each bad document of a file. A bad document that still says
// what it is keeps its own; one that does not may be any, so it keeps all that the file has lost.
func (d *directory) keepLastGood(docs, old []docState) []docState {
	nameless := -1
	for i := range docs {
		doc := &docs[i]
		if doc.status != statusError {
			continue
		}
		k := key{doc.kind, doc.namespace, doc.name}
		if k.kind == "" || k.name == "" {
			if nameless < 0 {
				nameless = i
			}
		} else if last := d.good[k]; last != nil && !last.denial {
			doc.obj, doc.status = last, statusStale
		}
	}
	if nameless < 0 {
		return docs
	}
	return keepUnclaimed(docs, old, nameless)
}

// keepUnclaimed lets the document at nameless stand for all objects of the file that no document names any more.
func keepUnclaimed(docs, old []docState, nameless int) []docState {
	claimed := make(map[key]bool, len(docs))
	for i := range docs {
		claimed[key{docs[i].kind, docs[i].namespace, docs[i].name}] = true
	}
	bad, replaced := docs[nameless], false
	for i := range old {
		o := old[i].obj
		if o == nil || o.denial || claimed[o.key()] {
			continue
		}
		kept := bad
		kept.kind, kept.namespace, kept.name = o.kind, o.namespace, o.name
		kept.obj, kept.status = o, statusStale
		if replaced {
			docs = append(docs, kept)
		} else {
			docs[nameless], replaced = kept, true
		}
	}
	return docs
}

// failedFile keeps the documents of a file that cannot be read any more.
func failedFile(name string, err error, old *fileState) *fileState {
	f := &fileState{name: name, err: err}
	if old == nil {
		return f
	}
	for _, doc := range old.docs {
		if doc.obj != nil {
			doc.status, doc.err = statusStale, &document.Error{Reason: "the file " + err.Error()}
			f.docs = append(f.docs, doc)
		}
	}
	return f
}

// chooseVersions works out which objects are in force. Where two documents have one name, the first in the order of files and
// documents is; a good one always comes before a stale one, and that before what stands in the place of a bad one.
func (d *directory) chooseVersions() {
	good := make(map[key]*object, len(d.good))
	for _, pass := range []Status{statusOK, statusStale, statusError} {
		for _, f := range d.files {
			for i := range f.docs {
				doc := &f.docs[i]
				if doc.status != pass || doc.obj == nil {
					continue
				}
				doc.conflict, doc.exception, doc.kept = nil, nil, false
				k := doc.obj.key()
				switch {
				case good[k] == nil:
					good[k] = doc.obj
				case pass == statusError:
				case pass == statusStale: // its last good version lives on elsewhere
					doc.status, doc.obj = statusError, nil
				default:
					doc.conflict = document.Errorf("metadata.name", "%s %s/%s is declared before, in %s; remove one of the two",
						k.kind, k.namespace, k.name, d.declaring(good[k]))
				}
			}
		}
	}
	d.before, d.good = d.good, good
}

// declaring says where the document of an object is.
func (d *directory) declaring(o *object) string {
	for _, f := range d.files {
		for i := range f.docs {
			if f.docs[i].obj == o {
				return documentOf(f, &f.docs[i]).Where()
			}
		}
	}
	return "another document"
}

// forbidden describes the documents that must not be ignored, a line each.
func (d *directory) forbidden() []string {
	var out []string
	for _, f := range d.files {
		for i := range f.docs {
			if f.docs[i].forbidden {
				out = append(out, documentOf(f, &f.docs[i]).text())
			}
		}
	}
	return out
}
