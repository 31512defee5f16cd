package tests

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents is what a user reads and types from.
var documents = []string{"README.md", "README.zh.md", "CONTRIBUTING.md"}

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

func TestReadmeOrder(t *testing.T) {
	want := []string{"Understudy", "The 60-second demo", "The tests", "A first pod", "Five words", "Hot upgrade", "DNS", "Capture", "What it is not", "Supported versions", "Trouble"}
	if got := headings(t, "README.md"); !slices.Equal(got, want) {
		t.Errorf("README.md has the sections %q, want %q", got, want)
	}
	if got := headings(t, "README.zh.md"); len(got) != len(want) {
		t.Errorf("README.zh.md has the sections %q, as many as README.md has: %d", got, len(want))
	}
}

// headings is the titles of a document, without what stands in code blocks.
func headings(t *testing.T, document string) []string {
	t.Helper()
	text := readRepoFile(t, document)
	for _, b := range codeBlocks(t, document) {
		text = strings.Replace(text, b.text, "", 1)
	}
	var titles []string
	for _, found := range regexp.MustCompile(`(?m)^##? (.+)$`).FindAllStringSubmatch(text, -1) {
		titles = append(titles, found[1])
	}
	return titles
}

// Both documents are one: what is typed, shown and applied is the same in either language.
func TestTranslationHasTheSameCode(t *testing.T) {
	english, chinese := codeBlocks(t, "README.md"), codeBlocks(t, "README.zh.md")
	if len(english) != len(chinese) {
		t.Fatalf("README.md has %d code blocks, README.zh.md %d", len(english), len(chinese))
	}
	for i := range english {
		if english[i].language == "yaml" {
			english[i].text, chinese[i].text = withoutComments(english[i].text), withoutComments(chinese[i].text)
		}
		if english[i].language != chinese[i].language || english[i].text != chinese[i].text {
			t.Errorf("the block at %s differs from that at %s", english[i].where(), chinese[i].where())
		}
	}
}

func withoutComments(text string) string {
	return regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(text, "")
}

func TestMakeTargetsExist(t *testing.T) {
	known := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(readRepoFile(t, "Makefile"), -1) {
		known[found[1]] = true
	}
	promised := []string{"build", "envoy", "demo", "test", "demo-upgrade", "soak", "bench", "help"}
	for _, target := range promised {
		if !known[target] {
			t.Errorf("Makefile has no target %s", target)
		}
	}
	// In code, that is: `make x` or a line of a block; prose may make anything.
	mention := regexp.MustCompile("(?m)(?:`|^)make ([a-z-]+)")
	for _, document := range documents {
		found := mention.FindAllStringSubmatch(readRepoFile(t, document), -1)
		if len(found) == 0 {
			t.Errorf("%s: no make command at all", document)
		}
		for _, target := range found {
			if !known[target[1]] {
				t.Errorf("%s: make %s: the Makefile has no such target", document, target[1])
			}
		}
	}
	// -n: what would run; a target that does not parse or has no rule fails.
	for target := range known {
		cmd := exec.Command("make", "-n", target)
		cmd.Dir = repoRoot(t)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("make -n %s: %v\n%s", target, err, out)
		}
	}
}

// buildAgent is the path of a pilot-agent made from this tree.
func buildAgent(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "pilot-agent")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "vtprotobuf", "-o", binary, "./cmd/pilot-agent")
	cmd.Dir = repoRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return binary
}

// agentCommand is a pilot-agent command line as a document or the demo shows it.
type agentCommand struct {
	where     string
	arguments []string
}

// TestAgentCommandsExist asks the agent for help on every command that is shown; help knows the flags.
func TestAgentCommandsExist(t *testing.T) {
	agent := buildAgent(t)
	commands := slices.Concat(shownCommands(t), podCommands(t))
	if len(commands) < 8 {
		t.Fatalf("found only %d commands of pilot-agent: the test no longer sees them", len(commands))
	}
	for _, c := range commands {
		var names, flags []string
		for _, argument := range c.arguments {
			if strings.HasPrefix(argument, "-") {
				name, _, _ := strings.Cut(argument, "=")
				flags = append(flags, name)
			} else if len(flags) == 0 && regexp.MustCompile(`^[a-z-]+$`).MatchString(argument) {
				names = append(names, argument)
			}
		}
		help, err := exec.Command(agent, append(names, "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: pilot-agent %s: %v\n%s", c.where, strings.Join(names, " "), err, help)
			continue
		}
		if len(names) > 0 && !bytes.Contains(help, []byte("pilot-agent "+names[0])) {
			t.Errorf("%s: there is no pilot-agent %s:\n%s", c.where, names[0], help)
		}
		for _, flag := range flags {
			if !regexp.MustCompile(`(?m)(^|[\s,])` + regexp.QuoteMeta(flag) + `([\s,=[]|$)`).Match(help) {
				t.Errorf("%s: pilot-agent %s has no flag %s", c.where, strings.Join(names, " "), flag)
			}
		}
	}
}

// shownCommands is every `pilot-agent ...` in the documents, in code, outside of the transcript and of manifests.
func shownCommands(t *testing.T) []agentCommand {
	t.Helper()
	inline := regexp.MustCompile("`pilot-agent ([a-z][^`]*)`")
	var commands []agentCommand
	for _, document := range documents {
		for _, found := range inline.FindAllStringSubmatch(readRepoFile(t, document), -1) {
			commands = append(commands, agentCommand{document, strings.Fields(found[1])})
		}
		for _, b := range codeBlocks(t, document) {
			if b.language != "sh" {
				continue
			}
			for line := range strings.Lines(b.text) {
				if _, arguments, found := strings.Cut(line, " pilot-agent "); found {
					commands = append(commands, agentCommand{b.where(), strings.Fields(arguments)})
				}
			}
		}
	}
	return commands
}

// TestDefaultsInReadme compares each row `SETTING` | `default` with the reference of all settings.
func TestDefaultsInReadme(t *testing.T) {
	reference := readRepoFile(t, "docs/settings.md")
	for _, document := range []string{"README.md", "README.zh.md"} {
		rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| (`[^`]+`) \\|").FindAllStringSubmatch(readRepoFile(t, document), -1)
		if len(rows) < 7 {
			t.Errorf("%s: %d settings with a default: the test no longer sees them", document, len(rows))
		}
		for _, row := range rows {
			known := regexp.MustCompile("(?m)^\\| [^|]+ \\| [^|]+ \\| " + regexp.QuoteMeta(row[2]) + " \\|.*`" + row[1] + "`")
			if !known.MatchString(reference) {
				t.Errorf("%s: %s with the default %s is not in docs/settings.md", document, row[1], row[2])
			}
		}
	}
}

// TestMetricsInReadme looks for each metric that is named in what makes the agent's metrics.
func TestMetricsInReadme(t *testing.T) {
	sources := shippedSources(t, "pkg")
	for _, document := range []string{"README.md", "README.zh.md"} {
		found := regexp.MustCompile(`istio_agent_([a-z_]+)`).FindAllStringSubmatch(readRepoFile(t, document), -1)
		if len(found) < 20 {
			t.Errorf("%s: %d metrics: the test no longer sees them", document, len(found))
		}
		for _, metric := range found {
			if !strings.Contains(sources, `"`+metric[1]+`"`) {
				t.Errorf("%s: the agent has no metric %s", document, metric[0])
			}
		}
	}
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, document := range append(documents, "ARCHITECTURE.md", "SECURITY.md") {
		for _, found := range link.FindAllStringSubmatch(readRepoFile(t, document), -1) {
			readRepoFile(t, found[1]) // fails when it is not there
		}
	}
}

// The transcript is the demo's own: what it says, the demo still says.
func TestTranscriptIsTheDemos(t *testing.T) {
	demo := readRepoFile(t, "demo/demo.sh")
	checked := 0
	for _, b := range codeBlocks(t, "README.md") {
		if b.language != "text" {
			continue
		}
		for line := range strings.Lines(b.text) {
			description, isCheck := strings.CutPrefix(strings.TrimSpace(line), "ok ")
			if !isCheck {
				continue
			}
			checked++
			if description = strings.TrimSpace(description); !strings.Contains(expandedDemo(demo), description) {
				t.Errorf("%s: the demo has no check %q: paste its output again", b.where(), description)
			}
		}
		if !regexp.MustCompile(`(?m)^demo: \d+ checks, 0 failed$`).MatchString(b.text) {
			t.Errorf("%s: the transcript does not end with a demo that succeeded", b.where())
		}
	}
	if checked < 10 {
		t.Errorf("the transcript shows %d checks", checked)
	}
}

// expandedDemo puts the values of the few variables that descriptions use in their place.
func expandedDemo(script string) string {
	return strings.NewReplacer("$POD_IP", "192.0.2.2", "$PROXY_UID", "1337", "$CHANGE_SECONDS", "2").Replace(script)
}
