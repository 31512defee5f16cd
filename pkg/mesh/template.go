package mesh

import (
	"bytes"
	"fmt"
	"regexp"
)

// template finds text that a template engine should have replaced: of Helm, Jinja and Go, or of a shell or Terraform.
var template = regexp.MustCompile(`\{\{.*?\}\}|\{%.*?%\}|\$\{[^{}\n]+\}`)

// templateText returns the first text of a template that a document still has, comments apart, and its line in the file.
func templateText(c chunk) (text string, line int) {
	line = c.line
	for row := range bytes.Lines(c.text) {
		if found := template.Find(row); found != nil && !bytes.HasPrefix(bytes.TrimSpace(row), []byte("#")) {
			return abridge(string(found)), line
		}
		line++
	}
	return "", 0
}

// blamed says in the reason for which a document is bad that it is an unfilled template, if it is one: what the parser or
// a field's check says of such text leads nobody to the cause.
func (d decoded) blamed(c chunk) decoded {
	if d.status != StatusError {
		return d
	}
	if text, line := templateText(c); text != "" {
		d.err = &fieldError{d.err.field, fmt.Sprintf("line %d still has the template text %s; render the template first (%s)", line, text, d.err.reason)}
	}
	return d
}
