package overview

import (
	"bufio"
	"html"
	"io"
	"time"

	"understudy.mesh/pkg/control"
)

// style is all that the page has besides its text: it asks for nothing from elsewhere.
const style = `body{font:14px/1.45 system-ui,sans-serif;margin:1.2em 2em;max-width:90em;color:#1c2430;background:#fff}
h1{font-size:1.3em;margin:0 0 .4em}h2{font-size:1em;margin:1.1em 0 .2em;color:#3d4f6b}p{margin:.2em 0}
table{border-collapse:collapse;font-size:13px}th{text-align:left;font-weight:600;color:#68758a;font-size:11px}
th,td{padding:.15em 1.2em .15em 0;vertical-align:top;border-bottom:1px solid #e6eaf0;overflow-wrap:anywhere}
td{font-family:ui-monospace,monospace}.bad{color:#b3261e}footer{margin-top:1.5em;color:#68758a;font-size:12px}
@media(prefers-color-scheme:dark){body{color:#d8dee9;background:#171b22}h2{color:#9db4d6}th,td{border-color:#2c3440}.bad{color:#ff8a80}}
`

// ContentSecurityPolicy is a header of the page: a browser is to run and to fetch nothing for it, whatever a name contains.
const ContentSecurityPolicy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

// WriteHTML writes the page. Every text goes through one function that escapes it, and none is in an attribute. html/template calls
// methods by their names, so that the linker would have to keep every method of the agent: 10 MB more.
func (o Overview) WriteHTML(w io.Writer, now time.Time) error {
	p := page{bufio.NewWriter(w)}
	head := o.headline()
	p.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>")
	p.text(head.text)
	p.raw("</title>\n<style>\n" + style + "</style>\n</head>\n<body>\n")
	p.element("h1", head.bad, head.text)
	p.raw("\n")
	for _, s := range o.sections(now) {
		p.section(s)
	}
	p.element("footer", false, "Seen at "+now.UTC().Format(time.RFC3339)+". The same in a terminal: pilot-agent status. As JSON: "+Path)
	p.raw("\n</body>\n</html>\n")
	return p.Flush()
}

// page writes HTML; a bufio.Writer's error is sticky.
type page struct{ *bufio.Writer }

func (p page) raw(markup string) { p.WriteString(markup) }

func (p page) text(s string) { p.WriteString(html.EscapeString(control.OneLine(s))) }

func (p page) element(tag string, bad bool, text string) {
	p.raw("<" + tag)
	if bad {
		p.raw(` class="bad"`)
	}
	p.raw(">")
	p.text(text)
	p.raw("</" + tag + ">")
}

func (p page) section(s section) {
	p.element("h2", false, s.title)
	p.raw("\n")
	for _, l := range s.lines {
		p.element("p", l.bad, l.text)
		p.raw("\n")
	}
	if len(s.rows) == 0 {
		return
	}
	p.raw("<table>\n<tr>")
	for _, h := range s.head {
		p.element("th", false, h)
	}
	p.raw("</tr>\n")
	for _, r := range s.rows {
		p.raw("<tr>")
		for _, c := range r.cells {
			p.element("td", r.bad, c)
		}
		p.raw("</tr>\n")
	}
	p.raw("</table>\n")
}
