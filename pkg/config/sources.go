package config

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"understudy.mesh/pkg/config/document"
	"understudy.mesh/pkg/contract"
)

// Files that a pod manifest mounts, relative to the working directory as in Istio.
const (
	annotationsFile = "./etc/istio/pod/annotations"
	labelsFile      = "./etc/istio/pod/labels"
)

// resolved is the value of a setting that the highest source so far gave it.
type resolved struct {
	value  any
	source string
}

// metadatum is one entry of proxyMetadata.
type metadatum struct{ value, source string }

// loader gathers the values of one Load, lowest source first.
type loader struct {
	src         Sources
	table       []Setting
	env         map[string]string
	annotations map[string]string
	labels      map[string]string
	proxy       map[string]any // the ProxyConfig of all sources, for the node metadata
	metadata    map[string]metadatum
	platform    Platform
	values      map[string]resolved
	problems    []error
	warnings    []Warning
	unacted     []Warning       // that count where no istiod acts on the setting
	warned      map[string]bool // settings without effect that were warned of, and fields of ProxyConfig
}

func newLoader(src Sources) *loader {
	if src.ReadFile == nil {
		src.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	}
	if src.IsDir == nil {
		src.IsDir = func(string) bool { return false }
	}
	if src.Role == "" {
		src.Role = Sidecar
	}
	l := &loader{
		src:      src,
		table:    Settings(),
		env:      map[string]string{},
		proxy:    map[string]any{},
		metadata: map[string]metadatum{},
		values:   map[string]resolved{},
		warned:   map[string]bool{},
	}
	for _, entry := range src.Environ {
		if key, value, ok := strings.Cut(entry, "="); ok && key != "" {
			l.env[key] = value
		}
	}
	return l
}

// set gives a setting the text that source spells under key.
func (l *loader) set(s Setting, kind Kind, text, source, key string) {
	value, err := kind.parse(text)
	if !utf8.ValidString(text) {
		err = document.ErrNotText
	}
	if err != nil {
		if s.secret && text != "" {
			text = masked
		}
		l.problem(source, key, text, err.Error())
		return
	}
	if source != sourceDefault && text != "" && text != "false" {
		switch s.Effect {
		case Warned:
			l.warnOnce(s.name, source, key, "has no effect: "+s.why)
		case UnderIstiod:
			l.warnFilesOnce(s.name, source, key)
		}
	}
	l.values[s.name] = resolved{value: value, source: source}
}

func (l *loader) problem(source, key, value, remedy string) {
	l.problems = append(l.problems, &problem{source: source, key: key, value: value, remedy: remedy})
}

// hasProblem tells whether something is wrong with a key already.
func (l *loader) hasProblem(source, key string) bool {
	return slices.ContainsFunc(l.problems, func(err error) bool {
		p, ok := err.(*problem)
		return ok && p.source == source && p.key == key
	})
}

func (l *loader) warn(source, key, message string) {
	l.warnings = append(l.warnings, Warning{source: source, key: key, message: message})
}

// origin is where a setting's value was read, and how it is spelled there.
func (l *loader) origin(name string) (source, key string) {
	source = l.values[name].source
	i := slices.IndexFunc(l.table, func(s Setting) bool { return s.name == name })
	return source, l.table[i].in(source)
}

// reject reports a setting under the name and source that gave it its value.
func (l *loader) reject(name, value, remedy string) {
	source, key := l.origin(name)
	l.problem(source, key, value, remedy)
}

// warnOnce warns of a setting in the first source that has it.
func (l *loader) warnOnce(name, source, key, message string) {
	if !l.warned[name] {
		l.warned[name] = true
		l.warn(source, key, message)
	}
}

// warnFilesOnce warns of what only istiod would act on, once it is known that there is none.
func (l *loader) warnFilesOnce(name, source, key string) {
	if !l.warned[name] {
		l.warned[name] = true
		l.unacted = append(l.unacted, Warning{source: source, key: key, message: "has no effect with --configDir"})
	}
}

func (l *loader) defaults() {
	for _, s := range l.table {
		if s.Default != "" {
			l.set(s, s.Kind, s.Default, sourceDefault, s.name)
		}
	}
}

// meshFile reads the mesh config file, whose path only the command line can change.
func (l *loader) meshFile() {
	path := l.values["meshConfig"].value.(string)
	if given, ok := l.src.Flags["meshConfig"]; ok {
		path = given
	}
	data, err := l.src.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, asked := l.src.Flags["meshConfig"]; asked {
			l.warn(sourceFlag, "--meshConfig", fmt.Sprintf("no file at %s: the defaults hold", shown(path)))
		}
		return
	}
	if err != nil {
		l.problem(path, "mesh config", "", fmt.Sprintf("want a readable file: %v", err))
		return
	}
	tree, err := document.Parse(data)
	if err != nil {
		l.problem(path, "mesh config", "", err.Error())
		return
	}
	tree = l.checked(&meshv1alpha1.MeshConfig{}, tree, path)
	proxy, _ := tree["defaultConfig"].(map[string]any)
	l.fromTree(tree, path, "", func(s Setting) string { return s.mesh })
	l.mergeProxy(proxy, path, "defaultConfig.")
}

// proxyConfig reads one ProxyConfig in YAML or JSON; text "" is none.
func (l *loader) proxyConfig(source, text string) {
	tree, err := document.Parse([]byte(text))
	if err != nil {
		l.problem(source, "ProxyConfig", "", err.Error())
		return
	}
	l.mergeProxy(l.checked(&meshv1alpha1.ProxyConfig{}, tree, source), source, "")
}

// checked returns the part of a tree that is right for msg, a ProxyConfig or a
// MeshConfig, and reports the rest: a wrong type as a problem, an unknown field as a
// warning. A field that Istio's API has dropped is known as long as the table has it.
func (l *loader) checked(msg proto.Message, tree map[string]any, source string) map[string]any {
	f := document.Fields{
		Known: func(path string) bool {
			name := strings.TrimPrefix(path, "defaultConfig.")
			return slices.ContainsFunc(l.table, func(s Setting) bool { return s.proxy == name })
		},
		Unknown: func(path string) { l.warn(source, path, "unknown field, ignored") },
		Wrong: func(path, value, want string) {
			if strings.Contains(strings.ToLower(path), "token") { // tracing.lightstep.accessToken
				value = masked
			}
			l.problem(source, path, value, want)
		},
	}
	return f.Check(msg.ProtoReflect(), tree)
}

// mergeProxy lets a checked ProxyConfig override what lower sources said: field by
// field, and proxyMetadata key by key.
func (l *loader) mergeProxy(tree map[string]any, source, prefix string) {
	l.fromTree(tree, source, prefix, func(s Setting) string { return s.proxy })
	l.nameUnread(tree, source, prefix, "")
	if tree["serviceCluster"] != nil { // of these two a ProxyConfig has one
		delete(l.proxy, "tracingServiceName")
	}
	if tree["tracingServiceName"] != nil {
		delete(l.proxy, "serviceCluster")
	}
	for key, value := range tree {
		if key != "proxyMetadata" {
			l.proxy[key] = value
			continue
		}
		entries, _ := value.(map[string]any)
		for name, text := range entries {
			l.metadata[name] = metadatum{document.Text(text), source + " " + prefix + "proxyMetadata"}
		}
	}
}

// fromTree sets every setting that has a path in the tree. An empty string is an
// unset field, as in the API.
func (l *loader) fromTree(tree map[string]any, source, prefix string, path func(Setting) string) {
	for _, s := range l.table {
		if path(s) == "" {
			continue
		}
		value, ok := document.Lookup(tree, strings.Split(path(s), "."))
		if ok && value != "" {
			l.set(s, s.Kind, document.Text(value), source, prefix+path(s))
		}
	}
}

// podAnnotations reads the downward API: annotations, of which one carries a
// ProxyConfig and others a single setting each, and labels.
func (l *loader) podAnnotations() {
	l.annotations = l.downward(annotationsFile)
	l.labels = l.downward(labelsFile)
	l.proxyConfig("annotation "+contract.ConfigAnnotation, l.annotations[contract.ConfigAnnotation])
	for _, s := range l.table {
		if text := l.annotations[s.annotation]; s.annotation != "" && text != "" {
			l.set(s, s.Kind, text, sourceAnnotation, s.annotation)
		}
	}
}

func (l *loader) downward(path string) map[string]string {
	data, err := l.src.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.problem(path, "downward API", "", fmt.Sprintf("want a readable file: %v", err))
		return nil
	}
	entries, err := document.ParseDownward(data)
	if err != nil {
		l.problem(path, "downward API", "", err.Error())
	}
	return entries
}

// proxyMetadata reads the entries that are spelled like an environment variable: the
// injector makes them variables of the container, so they act as such.
func (l *loader) proxyMetadata() {
	for _, s := range l.table {
		if m, ok := l.metadata[s.Env]; ok && s.Env != "" && (m.value != "" || s.emptyEnv) {
			l.set(s, s.envKind, m.value, m.source, s.Env)
		}
		if m, ok := l.metadata[s.metadata]; ok && s.metadata != "" && m.value != "" {
			l.set(s, s.Kind, m.value, m.source, s.metadata)
		}
	}
}

// environment reads the variables; an empty one is not set, as manifests fill optional
// ones from the downward API, unless the setting says otherwise.
func (l *loader) environment() {
	for _, s := range l.table {
		if text, ok := l.env[s.Env]; ok && s.Env != "" && (text != "" || s.emptyEnv) {
			l.set(s, s.envKind, text, sourceEnv, s.Env)
		}
	}
}

func (l *loader) flags() {
	for _, s := range l.table {
		text, ok := l.src.Flags[s.Flag]
		if s.Flag == "" || !ok || (s.flagZero && text == "0") {
			continue
		}
		l.set(s, s.Kind, text, sourceFlag, "--"+s.Flag)
	}
}

// isSet reports whether a source above the defaults gave the setting a value.
func (l *loader) isSet(name string) bool {
	r, ok := l.values[name]
	return ok && r.source != sourceDefault
}

// derived records the value of a setting that another one stands in for.
func (l *loader) derived(name string, value any) {
	l.values[name] = resolved{value: value, source: sourceDerived}
}
