package document

import (
	"bytes"
	"regexp"
)

// template finds text that a template engine should have replaced: of Helm, Jinja and Go, or of a shell or Terraform.
var template = regexp.MustCompile(`\{\{.*?\}\}|\{%.*?%\}|\$\{[^{}\n]+\}`)

// Template returns the first text of a template that a document still has, comments apart, and its line in the file.
func (c Chunk) Template() (text string, line int) {
	line = c.Line
	for row := range bytes.Lines(c.Text) {
		if found := template.Find(row); found != nil && !bytes.HasPrefix(bytes.TrimSpace(row), []byte("#")) {
			return Abridge(string(found)), line
		}
		line++
	}
	return "", 0
}
