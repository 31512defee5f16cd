package wasm

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry"
)

// Policy says when a registry or server is asked, with the meaning that Kubernetes gives the names.
type Policy int

// The policies. The default is IfNotPresent, but Always for the tag latest. Never is for whoever starts: what was in force before is in
// force again, whether there is a registry or not.
const (
	DefaultPolicy Policy = iota
	IfNotPresent
	Always
	Never // the store alone is asked
)

// Source says which module is wanted.
type Source struct {
	// URL is where it is: oci://, http://, https:// or file://; without a scheme the name of an image.
	URL string
	// SHA256 is what is wanted, in hexadecimal: of the unpacked module, or for an image also of its manifest; "": whatever is there.
	SHA256 string
	Policy Policy
	// Secret names a pull secret of Config.SecretsDir, which must be there; "": none.
	Secret string
	// SecretIfThere names one that is used if it is there; "": none.
	SecretIfThere string
	// DockerConfig is such a secret itself; nil: none.
	DockerConfig []byte
	// Plugin is the configuration with which the module is tried before anybody gets it.
	Plugin Plugin
	// Once returns the first error, instead of trying again for as long as it takes.
	Once bool
}

// Kinds of places.
const (
	inRegistry = iota
	onServer
	inFile
)

// place is a source that was read and may be asked.
type place struct {
	kind   int
	name   string             // for people and as a key: without what may be a secret
	image  registry.Reference // in a registry, after the mirrors
	url    *url.URL           // on a server
	path   string             // of a file
	sha256 string
	policy Policy
}

// sourceError is a source that no waiting helps.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

func badSource(format string, args ...any) error {
	return &sourceError{fmt.Errorf(format, args...)}
}

var hexSHA256 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// place reads a source.
func (s *Store) place(src Source) (place, error) {
	p := place{policy: src.Policy, sha256: strings.ToLower(strings.TrimPrefix(src.SHA256, "sha256:"))}
	if p.sha256 != "" && !hexSHA256.MatchString(p.sha256) {
		return p, badSource("sha256 %q: want 64 hexadecimal digits", src.SHA256)
	}
	scheme, rest, ok := strings.Cut(src.URL, "://")
	if !ok {
		scheme, rest = "oci", src.URL
	}
	var err error
	switch scheme {
	case "oci":
		err = p.readImage(rest, s.cfg.Mirrors)
	case "http", "https":
		err = p.readURL(src.URL)
	case "file":
		err = p.readPath(rest)
	default:
		err = fmt.Errorf("the scheme %q: want oci, http, https or file", scheme)
	}
	if err != nil {
		return p, badSource("module %q: %w", withoutQuery(src.URL), err)
	}
	if p.kind != inFile && !s.allows(p.name) {
		return p, badSource("module %q: its registry is none of those that UNDERSTUDY_WASM_ALLOW lists: %s", p.name, strings.Join(s.cfg.Allow, ", "))
	}
	return p, nil
}

// dockerHub is where names of images without a registry are.
const dockerHub = "docker.io"

// canonicalImage is the name of an image with its registry, as Docker reads it.
func canonicalImage(name string) string {
	first, rest, several := strings.Cut(name, "/")
	switch {
	case !several:
		return dockerHub + "/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		return dockerHub + "/" + name
	case (first == dockerHub || first == "index."+dockerHub) && !strings.Contains(rest, "/"):
		return dockerHub + "/library/" + rest
	}
	return name
}

func (p *place) readImage(name string, mirrors []Mirror) error {
	if strings.ContainsAny(name, "?#") {
		return errors.New("want the name of an image, such as registry.example.com/filters/headers:v1")
	}
	name = canonicalImage(name)
	image, err := registry.ParseReference(mirrored(name, mirrors))
	if err != nil {
		return fmt.Errorf("want the name of an image, such as registry.example.com/filters/headers:v1: %w", err)
	}
	latest := image.Reference == "" || image.Reference == "latest"
	image.Reference = cmp.Or(image.Reference, "latest")
	p.kind, p.name, p.image = inRegistry, name, image
	switch {
	case image.ValidateReferenceAsDigest() == nil && p.policy != Never:
		p.policy = IfNotPresent // what it names never changes
	case p.policy == DefaultPolicy && latest:
		p.policy = Always
	}
	return nil
}

func (p *place) readURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("want a URL") // the parser's error shows all of it
	case u.Host == "":
		return errors.New("want a URL with a host")
	case u.User != nil:
		return errors.New("credentials in a URL are shown to everybody: serve it without, or put it into a registry, with a pull secret")
	}
	u.Fragment = ""
	p.kind, p.url, p.name = onServer, u, withoutQuery(u.String())
	return nil
}

func (p *place) readPath(path string) error {
	if !filepath.IsAbs(path) {
		return errors.New("want an absolute path: file:///var/local/lib/wasm-filters/example-filter.wasm")
	}
	p.kind, p.path = inFile, filepath.Clean(path)
	p.name = "file://" + p.path
	return nil
}

// withoutQuery leaves out what may authorise a request.
func withoutQuery(text string) string {
	text, _, _ = strings.Cut(text, "?")
	if before, after, ok := strings.Cut(text, "://"); ok {
		host, path, _ := strings.Cut(after, "/")
		if _, clean, ok := strings.Cut(host, "@"); ok {
			return before + "://" + clean + "/" + path
		}
	}
	return text
}

// within says whether a name is that of a registry, or of something below a path in it.
func within(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || strings.HasSuffix(prefix, "/") || strings.ContainsAny(rest[:1], "/:@"))
}

// allows says whether modules may be had from there.
func (s *Store) allows(name string) bool {
	_, after, ok := strings.Cut(name, "://")
	if !ok {
		after = name
	}
	return len(s.cfg.Allow) == 0 || slices.ContainsFunc(s.cfg.Allow, func(prefix string) bool { return within(after, prefix) })
}

// Mirror has images whose names begin with one text fetched from where another is in its place.
type Mirror struct{ from, to string }

// ParseMirrors reads from=to pairs.
func ParseMirrors(pairs []string) ([]Mirror, error) {
	var mirrors []Mirror
	for _, pair := range pairs {
		from, to, ok := strings.Cut(pair, "=")
		from, to = strings.TrimSuffix(from, "/"), strings.TrimSuffix(to, "/")
		if _, err := registry.ParseReference(to + "/a"); !ok || from == "" || err != nil {
			return nil, fmt.Errorf("mirror %q: want from=to, such as docker.io=mirror.example.com/hub", pair)
		}
		mirrors = append(mirrors, Mirror{from, to})
	}
	return mirrors, nil
}

// mirrored is where an image is fetched from: by the mirror with the longest beginning.
func mirrored(name string, mirrors []Mirror) string {
	best := Mirror{}
	for _, m := range mirrors {
		if within(name, m.from) && len(m.from) > len(best.from) {
			best = m
		}
	}
	if best.from == "" {
		return name
	}
	return best.to + strings.TrimPrefix(name, best.from)
}
