package tests

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// maxReadmeLines is what somebody reads who has only just heard of the project.
const maxReadmeLines = 150

const (
	frontPage = "docs/README.md"
	chinese   = ".zh.md"
)

// developerPapers are about the code, and in English alone.
var developerPapers = []string{"CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "docs/goroutines.md"}

// pages is what a user reads, in English: the README and all of docs/.
func pages(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repoRoot(t), "docs", "*.md"))
	if err != nil || len(files) < 2 {
		t.Fatalf("docs/*.md: %q, %v", files, err)
	}
	found := []string{"README.md"}
	for _, file := range files {
		if page := "docs/" + filepath.Base(file); !strings.HasSuffix(page, chinese) && !slices.Contains(developerPapers, page) {
			found = append(found, page)
		}
	}
	return found
}

// twin is the Chinese form of a page.
func twin(page string) string { return strings.TrimSuffix(page, ".md") + chinese }

// papers is every page in both languages.
func papers(t *testing.T) []string {
	t.Helper()
	var both []string
	for _, page := range pages(t) {
		both = append(both, page, twin(page))
	}
	return both
}

// documents is what a user or contributor types from.
func documents(t *testing.T) []string {
	t.Helper()
	return append(papers(t), "CONTRIBUTING.md")
}

// block is one fenced code block of a document.
type block struct {
	document, language, text string
	line                     int
}

func (b block) where() string { return fmt.Sprintf("%s:%d", b.document, b.line) }

func codeBlocks(t *testing.T, document string) []block {
	t.Helper()
	var blocks []block
	var open *block
	line := 0
	for text := range strings.Lines(readRepoFile(t, document)) {
		line++
		fence, isFence := strings.CutPrefix(strings.TrimRight(text, "\n"), "```")
		switch {
		case isFence && open == nil:
			open = &block{document: document, language: fence, line: line}
		case isFence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += text
		}
	}
	if open != nil {
		t.Fatalf("%s: the code block is never closed", open.where())
	}
	return blocks
}

// prose is a document without its code blocks.
func prose(t *testing.T, document string) string {
	t.Helper()
	text := readRepoFile(t, document)
	for _, b := range codeBlocks(t, document) {
		text = strings.Replace(text, "```"+b.language+"\n"+b.text+"```\n", "", 1)
	}
	return text
}

var heading = regexp.MustCompile(`(?m)^(#+) (.+)$`)

// headings is the titles of a document, down to a level.
func headings(t *testing.T, document string, level int) []string {
	t.Helper()
	var titles []string
	for _, found := range heading.FindAllStringSubmatch(prose(t, document), -1) {
		if len(found[1]) <= level {
			titles = append(titles, found[2])
		}
	}
	return titles
}

func TestReadmeIsShort(t *testing.T) {
	for _, document := range []string{"README.md", twin("README.md")} {
		if lines := strings.Count(readRepoFile(t, document), "\n"); lines > maxReadmeLines {
			t.Errorf("%s has %d lines, more than %d: move some to docs/", document, lines, maxReadmeLines)
		}
	}
}

// Both languages are one: what is typed, shown and applied is the same, under as many headings.
func TestTranslationHasTheSameCode(t *testing.T) {
	for _, page := range pages(t) {
		english, translated := codeBlocks(t, page), codeBlocks(t, twin(page))
		if len(english) != len(translated) {
			t.Errorf("%s has %d code blocks, %s %d", page, len(english), twin(page), len(translated))
			continue
		}
		for i := range english {
			if english[i].language == "yaml" {
				english[i].text, translated[i].text = withoutComments(english[i].text), withoutComments(translated[i].text)
			}
			if english[i].language != translated[i].language || english[i].text != translated[i].text {
				t.Errorf("the block at %s differs from that at %s", english[i].where(), translated[i].where())
			}
		}
	}
}

func withoutComments(text string) string {
	return regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(text, "")
}

// TestTranslationHasTheSameParts compares headings by level, and the rows of tables and the items of lists below each.
func TestTranslationHasTheSameParts(t *testing.T) {
	headingsOnly := regexp.MustCompile(`(?m)^#+ `)
	all := regexp.MustCompile(`(?m)^(#+ |\||- |\d+\. )`)
	for _, page := range pages(t) {
		part := all
		if page == "docs/settings.md" { // its tables are generated, in English alone
			part = headingsOnly
		}
		english, translated := part.FindAllString(prose(t, page), -1), part.FindAllString(prose(t, twin(page)), -1)
		if !slices.Equal(english, translated) {
			t.Errorf("%s has the parts %q, %s %q", page, english, twin(page), translated)
		}
	}
}

// A reader who has come to a page by a search sees at once whether it is theirs.
func TestPagesSayWhomTheyAreFor(t *testing.T) {
	for _, document := range papers(t) {
		want := "For "
		if strings.HasSuffix(document, chinese) {
			want = "本页面向"
		}
		_, first, _ := strings.Cut(readRepoFile(t, document), "\n")
		if !strings.HasPrefix(document, "README") && !strings.HasPrefix(strings.TrimSpace(first), want) {
			t.Errorf("%s: the first paragraph begins with %q, want %q and for whom the page is", document, firstWords(first), want)
		}
	}
}

func firstWords(text string) string {
	words := strings.Fields(text)
	return strings.Join(words[:min(len(words), 5)], " ")
}

// The front page of each language leads to every page of that language, and the README to the front page.
func TestEveryPageIsReached(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repoRoot(t), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		page := "docs/" + filepath.Base(file)
		front, readme := frontPage, "README.md"
		if strings.HasSuffix(page, chinese) {
			front, readme = twin(front), twin(readme)
		}
		from := front
		if page == front {
			from = readme
		}
		if !slices.ContainsFunc(links(t, from), func(l link) bool { return l.file == page }) {
			t.Errorf("%s does not lead to %s", from, page)
		}
	}
}

// link is where one leads: a file, named from the root, and a heading of it.
type link struct{ file, anchor string }

func links(t *testing.T, document string) []link {
	t.Helper()
	var found []link
	for _, l := range regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(prose(t, document), -1) {
		file := document
		if l[1] != "" {
			file = path.Join(path.Dir(document), l[1])
		}
		found = append(found, link{file, l[2]})
	}
	return found
}

func TestLinksLeadSomewhere(t *testing.T) {
	checked := 0
	for _, document := range append(papers(t), developerPapers...) {
		for _, l := range links(t, document) {
			checked++
			readRepoFile(t, l.file) // fails when it is not there
			if l.anchor != "" && !slices.Contains(anchors(t, l.file), l.anchor) {
				t.Errorf("%s: %s has no heading #%s", document, l.file, l.anchor)
			}
		}
	}
	if checked < 20 {
		t.Errorf("found only %d links: the test no longer sees them", checked)
	}
}

// TestPathsInPapers wants every file that a paper names, such as `pkg/config` or `rules.go`, to be there.
func TestPathsInPapers(t *testing.T) {
	checked := 0
	for _, document := range append(papers(t), developerPapers...) {
		for _, found := range regexp.MustCompile("`([a-z][a-zA-Z0-9_./*-]*)`").FindAllStringSubmatch(prose(t, document), -1) {
			if name := found[1]; strings.HasSuffix(name, ".go") || isDirectory(t, strings.Split(name, "/")[0]) {
				checked++
				if !exists(t, name) && !strings.HasPrefix(name, "docs/X.") {
					t.Errorf("%s: there is no %s", document, name)
				}
			}
		}
	}
	if checked < 30 {
		t.Errorf("found only %d paths: the test no longer sees them", checked)
	}
}

func isDirectory(t *testing.T, name string) bool {
	t.Helper()
	info, err := os.Stat(filepath.Join(repoRoot(t), name))
	return err == nil && info.IsDir()
}

// exists looks for a path from the root, which may have a *, or for a bare name at any depth.
func exists(t *testing.T, name string) bool {
	t.Helper()
	for _, parent := range []string{"", "*", "*/*", "*/*/*"} {
		found, err := filepath.Glob(filepath.Join(repoRoot(t), parent, name))
		if err == nil && len(found) > 0 {
			return true
		}
		if strings.Contains(name, "/") {
			break
		}
	}
	return false
}

// anchors is the names that a host such as GitHub gives to the headings of a document.
func anchors(t *testing.T, document string) []string {
	t.Helper()
	var names []string
	for _, title := range headings(t, document, 6) {
		names = append(names, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsNumber(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, title))
	}
	return names
}

// TestExtensionsInPapers: docs/istiod.md names each extension that a default istiod asks for and a stock Envoy lacks, as a real one was
// seen to do (tests/cluster/pods/doctor_test.go), and no other.
func TestExtensionsInPapers(t *testing.T) {
	var lacking []string
	for line := range strings.Lines(readRepoFile(t, "tests/cluster/pods/testdata/default-istiod.golden")) {
		if name, istios := strings.CutPrefix(strings.TrimSpace(line), "istio "); istios {
			lacking = append(lacking, name)
		}
	}
	row := regexp.MustCompile("(?m)^\\| (`[a-z_.0-9]+\\.[A-Z][A-Za-z]+`.*?) \\|")
	for _, page := range []string{"docs/istiod.md", "docs/istiod.zh.md"} {
		var named []string
		for _, m := range row.FindAllStringSubmatch(readRepoFile(t, page), -1) {
			for name := range strings.SplitSeq(m[1], ", ") {
				named = append(named, strings.Trim(name, "`"))
			}
		}
		slices.Sort(named)
		if !slices.Equal(named, lacking) || len(named) == 0 {
			t.Errorf("%s names the extensions %q, want %q", page, named, lacking)
		}
	}
}
