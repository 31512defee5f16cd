package config

import (
	"fmt"
	"strings"

	"understudy.mesh/pkg/contract"
)

// referenceHead opens the reference page.
const referenceHead = `# Settings of ` + "`pilot-agent proxy`" + `

For whoever configures the agent: the names, default and meaning of each setting, and which source wins.
The page is made from the table in ` + "`pkg/config`" + ` by ` + "`go generate ./pkg/config`" + `; do not edit it.

Precedence, from low to high: default; mesh config file (` + "`--meshConfig`" + `, its ` + "`defaultConfig`" + ` is a
ProxyConfig); the variable ` + "`PROXY_CONFIG`" + `; the pod's annotation ` + "`" + contract.ConfigAnnotation + "`" + ` and then its
other annotations; entries of ` + "`proxyMetadata`" + ` that are spelled like a variable; variables of the environment;
flags. ` + "`proxyMetadata`" + ` is merged key by key, every other field is replaced whole. An empty variable is not set
(only ` + "`UNDERSTUDY_HANDOFF_DIR`" + ` is: it turns the hot upgrade off).

Under "File": ` + "`proxy:`" + ` is a field of ProxyConfig, ` + "`mesh:`" + ` a field of MeshConfig, ` + "`metadata:`" + ` an entry of
proxyMetadata. Variables ` + "`ISTIO_META_*`" + ` and ` + "`ISTIO_METAJSON_*`" + ` become metadata of Envoy's node as well.
Durations of flags and variables are Go's (` + "`1m30s`" + `), in files seconds (` + "`90s`" + `).
Values marked secret are masked in the log and in errors. A field of ProxyConfig that is not on this page, and on which
nothing acts, is named in the log at the start.
`

// Reference renders the reference page of all settings, in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	var group string
	for _, s := range Settings() {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n## %s\n\n| setting | type | default | flag | variable | annotation | file | meaning |\n|---|---|---|---|---|---|---|---|\n", group)
		}
		flag := s.Flag
		if flag != "" {
			flag = "--" + flag
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
			s.name, s.kinds(), code(s.Default), code(flag), code(s.Env), code(s.annotation), s.files(), s.meaning())
	}
	return b.String()
}

func (s Setting) kinds() string {
	if s.envKind != s.Kind && s.Env != "" {
		return fmt.Sprintf("%s (variable: %s)", s.Kind, s.envKind)
	}
	return s.Kind.String()
}

// files names the setting's fields in files.
func (s Setting) files() string {
	var names []string
	for _, n := range []struct{ kind, path string }{{"proxy", s.proxy}, {"mesh", s.mesh}, {"metadata", s.metadata}} {
		if n.path != "" {
			names = append(names, n.kind+": "+code(n.path))
		}
	}
	return strings.Join(names, ", ")
}

func (s Setting) meaning() string {
	text := strings.ReplaceAll(s.Doc, "|", `\|`)
	if s.Global {
		text += " (every command)"
	}
	if s.secret {
		text += " (secret)"
	}
	switch s.Effect {
	case UnderIstiod:
		text += ". No effect with " + "`--configDir`" + ", and a warning"
	case NoEffect:
		text += ". No effect: " + s.why
	case Warned:
		text += ". No effect, with a warning: " + s.why
	}
	return text
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}
