package tests

import (
	"bytes"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

func TestReadmeOrder(t *testing.T) {
	want := []string{"Understudy", "The 60-second demo", "The tests", "A first pod", "Where to go on"}
	if got := headings(t, "README.md", 2); !slices.Equal(got, want) {
		t.Errorf("README.md has the sections %q, want %q", got, want)
	}
	if got := headings(t, "README.zh.md", 2); len(got) != len(want) {
		t.Errorf("README.zh.md has the sections %q, as many as README.md has: %d", got, len(want))
	}
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
	for _, document := range documents(t) {
		found := mention.FindAllStringSubmatch(readRepoFile(t, document), -1)
		if len(found) == 0 && !strings.HasPrefix(document, "docs/") {
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

// TestGoTestsInPapers wants the packages and the tests that a `go test` of a paper names.
func TestGoTestsInPapers(t *testing.T) {
	declared := make(map[string][]string) // names by directory
	for _, p := range listPackages(t) {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			relative := filepath.Join(p.short(), filepath.Base(file))
			for _, found := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(readRepoFile(t, relative), -1) {
				declared[p.short()] = append(declared[p.short()], found[1])
			}
		}
	}
	checked := 0
	for _, document := range documents(t) {
		for _, command := range regexp.MustCompile("(?m)(?:^|`)go test ([^`\n]+)").FindAllStringSubmatch(readRepoFile(t, document), -1) {
			checked++
			directory := regexp.MustCompile(`\./([\w/-]+?)/?(?: |$)`).FindStringSubmatch(command[1])
			if directory == nil || len(declared[directory[1]]) == 0 {
				t.Errorf("%s: go test %s: there are no tests", document, command[1])
				continue
			}
			for _, name := range regexp.MustCompile(`-(?:run|fuzz) (\w+)`).FindAllStringSubmatch(command[1], -1) {
				if !slices.ContainsFunc(declared[directory[1]], func(test string) bool { return strings.Contains(test, name[1]) }) {
					t.Errorf("%s: go test %s: %s has no test %s", document, command[1], directory[1], name[1])
				}
			}
		}
		for _, name := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(prose(t, document), -1) {
			checked++
			if !slices.ContainsFunc(slices.Collect(maps.Values(declared)), func(tests []string) bool { return slices.Contains(tests, name[1]) }) {
				t.Errorf("%s: there is no %s", document, name[1])
			}
		}
	}
	if checked < 8 {
		t.Errorf("found only %d tests: the test no longer sees them", checked)
	}
}

// buildAgent is the path of a pilot-agent made from this tree.
func buildAgent(t *testing.T) string {
	t.Helper()
	return buildCommand(t, "pilot-agent")
}

// buildCommand is the path of a command made from this tree.
func buildCommand(t *testing.T, name string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "vtprotobuf,grpcnotrace", "-o", binary, "./cmd/"+name)
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
	if len(commands) < 60 {
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

// shownCommands is every `pilot-agent ...` in the documents, in code, outside of the demo's transcript and of manifests.
func shownCommands(t *testing.T) []agentCommand {
	t.Helper()
	inline := regexp.MustCompile("`pilot-agent ([a-z][^`]*)`")
	typed := map[string]*regexp.Regexp{
		"sh":      regexp.MustCompile(`(?m)(?:^| )pilot-agent (.*)$`),
		"console": regexp.MustCompile(`(?m)^\$ (?:.* )?pilot-agent (.*)$`),
	}
	var commands []agentCommand
	for _, document := range documents(t) {
		for _, found := range inline.FindAllStringSubmatch(prose(t, document), -1) {
			commands = append(commands, agentCommand{document, strings.Fields(found[1])})
		}
		for _, b := range codeBlocks(t, document) {
			if command := typed[b.language]; command != nil {
				for _, found := range command.FindAllStringSubmatch(b.text, -1) {
					commands = append(commands, agentCommand{b.where(), strings.Fields(found[1])})
				}
			}
		}
	}
	return commands
}

// TestFlagsInPapers looks for each flag that stands alone in code, such as `--verify`, in the help of every command.
func TestFlagsInPapers(t *testing.T) {
	var help strings.Builder
	for program, commands := range map[string][]string{
		"pilot-agent":      {"proxy", "wait", "request", "upgrade-status", "status", "dns lookup", "dns cache", "doctor capture", "doctor trace", "istio-iptables", "wasm verify", "wasm pull", "wasm cache", "wasm explain"},
		"sidecar-injector": {"serve", "inject", "explain", "import", "sidecarset", "upgrade", "upgrader", "restart", "versions", "preflight"},
	} {
		binary := buildCommand(t, program)
		for _, command := range commands {
			out, err := exec.Command(binary, append(strings.Fields(command), "--help")...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %s --help: %v\n%s", program, command, err, out)
			}
			help.Write(out)
		}
	}
	inBothLanguages(t, 20, "flags", func(document string) int {
		found := regexp.MustCompile("`(--?[a-zA-Z][a-zA-Z0-9_-]*)[^`]*`").FindAllStringSubmatch(prose(t, document), -1)
		for _, flag := range found {
			if !regexp.MustCompile(`(?m)(^|[\s,])` + regexp.QuoteMeta(flag[1]) + `([\s,=[]|$)`).MatchString(help.String()) {
				t.Errorf("%s: no command has the flag %s", document, flag[1])
			}
		}
		return len(found)
	})
}

// inBothLanguages calls check, which returns how much it has checked, for each page and each translation, and wants enough of both.
func inBothLanguages(t *testing.T, enough int, what string, check func(document string) int) {
	t.Helper()
	var english, translated int
	for _, page := range pages(t) {
		english += check(page)
		translated += check(twin(page))
	}
	if english < enough || translated < enough {
		t.Errorf("%d %s in English and %d in Chinese, want %d: the test no longer sees them", english, what, translated, enough)
	}
}

// TestDefaultsInPapers compares each row `SETTING` | `default` with the reference of all settings.
func TestDefaultsInPapers(t *testing.T) {
	reference := readRepoFile(t, "docs/settings.md")
	inBothLanguages(t, 7, "settings with a default", func(document string) int {
		rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| (`[^`]+`) \\|").FindAllStringSubmatch(readRepoFile(t, document), -1)
		for _, row := range rows {
			known := regexp.MustCompile("(?m)^\\| [^|]+ \\| [^|]+ \\| " + regexp.QuoteMeta(row[2]) + " \\|.*`" + row[1] + "`")
			if !known.MatchString(reference) {
				t.Errorf("%s: %s with the default %s is not in docs/settings.md", document, row[1], row[2])
			}
		}
		return len(rows)
	})
}

// TestSettingsInPapers looks for each variable that a paper names in the reference of all settings and in the help of istio-iptables.
func TestSettingsInPapers(t *testing.T) {
	help, err := exec.Command(buildAgent(t), "istio-iptables", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, help)
	}
	known := readRepoFile(t, "docs/settings.md") + strings.NewReplacer("$", "`", "]", "`", ",", "`").Replace(string(help))
	ofIstiosAPI := []string{"DNS_ROUND_ROBIN", "DYNAMIC_DNS", "HTTP_PROXY", "REGISTRY_ONLY"}
	for _, names := range []map[string]int32{extensions.FailStrategy_value, networking.EnvoyFilter_ApplyTo_value, networking.EnvoyFilter_PatchContext_value, networking.EnvoyFilter_Patch_Operation_value} {
		ofIstiosAPI = slices.AppendSeq(ofIstiosAPI, maps.Keys(names))
	}
	const ofIstiod = "PILOT_"
	variable := regexp.MustCompile("`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)[`=]|(UNDERSTUDY_[A-Z_]+[A-Z])")
	inBothLanguages(t, 25, "variables", func(document string) int {
		found := variable.FindAllStringSubmatch(readRepoFile(t, document), -1)
		for _, f := range found {
			if name := f[1] + f[2]; !strings.Contains(known, "`"+name+"`") && !slices.Contains(ofIstiosAPI, name) && !strings.HasPrefix(name, ofIstiod) {
				t.Errorf("%s: no setting has the variable %s", document, name)
			}
		}
		return len(found)
	})
}

// TestMetricsInPapers looks for each metric that is named in what makes the agent's metrics.
func TestMetricsInPapers(t *testing.T) {
	sources := shippedSources(t, "pkg")
	inBothLanguages(t, 20, "metrics", func(document string) int {
		found := regexp.MustCompile(`istio_agent_([a-z_0-9]+[a-z])`).FindAllStringSubmatch(readRepoFile(t, document), -1)
		for _, metric := range found {
			// A histogram has three series; those of the process and of Go are the client library's.
			name := regexp.MustCompile(`_seconds_(bucket|count|sum)$`).ReplaceAllString(metric[1], "_seconds")
			if !strings.Contains(sources, `"`+name+`"`) && !regexp.MustCompile(`^(go|process)_`).MatchString(name) {
				t.Errorf("%s: the agent has no metric %s", document, metric[0])
			}
		}
		injectors := regexp.MustCompile(`sidecar_injection_([a-z_]+[a-z])`).FindAllStringSubmatch(readRepoFile(t, document), -1)
		for _, metric := range injectors {
			if !strings.Contains(sources, `"`+metric[1]+`"`) {
				t.Errorf("%s: the injector has no metric %s", document, metric[0])
			}
		}
		return len(found) + len(injectors)
	})
}

// allBlocks is every code block of the pages in a language.
func allBlocks(t *testing.T, language string) []block {
	t.Helper()
	var blocks []block
	for _, page := range pages(t) {
		for _, b := range codeBlocks(t, page) {
			if b.language == language {
				blocks = append(blocks, b)
			}
		}
	}
	return blocks
}

// A transcript is the demo's own: what it says, the demo still says.
func TestTranscriptIsTheDemos(t *testing.T) {
	demo := readRepoFile(t, "demo/demo.sh")
	checked := 0
	for _, b := range allBlocks(t, "text") {
		for line := range strings.Lines(b.text) {
			description, isCheck := strings.CutPrefix(strings.TrimSpace(line), "ok ")
			if !isCheck {
				continue
			}
			checked++
			description = strings.TrimSpace(description)
			if script := expandedDemo(demo); !strings.Contains(script, "'"+description+"'") && !strings.Contains(script, `"`+description+`"`) {
				t.Errorf("%s: the demo has no check %q: paste its output again", b.where(), description)
			}
		}
		if !regexp.MustCompile(`(?m)^demo: \d+ checks, 0 failed$`).MatchString(b.text) {
			t.Errorf("%s: the transcript does not end with a demo that succeeded", b.where())
		}
	}
	if checked < 10 {
		t.Errorf("the transcripts show %d checks", checked)
	}
}

// expandedDemo puts the values of the few variables that descriptions use in their place.
func expandedDemo(script string) string {
	return strings.NewReplacer("$POD_IP", "192.0.2.2", "$PROXY_UID", "1337", "$CHANGE_SECONDS", "2").Replace(script)
}

// shownOutput is what a console block of a page shows, where the command's code says it.
var shownOutput = map[string][]string{
	"docs/capture.md": {
		"TCP to every ", "a rule that is not ours takes packets before ours can", "capture is not as it should be",
		"(assumed)", "lands at ", " by interface ", "not captured", "decided by ", "because: ", "excluded outbound port",
	},
	"docs/dns.md":     {"OVERTAKEN", "LAST ERROR", "used for ", "for others in ", "Used: ", "Kept back, as their host left: "},
	"docs/wasm.md":    {"proxy-wasm ABI ", "functions of the host: ", "it starts in Envoy ", "sha256: "},
	"docs/operate.md": {"the configuration files are not in force yet", "the DNS table is not ready yet", "Envoy is starting"},
}

// A command's output is what the command prints today.
func TestConsoleShowsWhatCommandsPrint(t *testing.T) {
	sources := shippedSources(t, "cmd", "dnsproxy", "iptables", "pkg")
	for page, lines := range shownOutput {
		var shown string
		for _, b := range codeBlocks(t, page) {
			if b.language == "console" {
				shown += b.text
			}
		}
		for _, line := range lines {
			if !strings.Contains(shown, line) || !strings.Contains(sources, line) {
				t.Errorf("%s: %q is in the page: %v, and in the code: %v; run the command and paste its output again",
					page, line, strings.Contains(shown, line), strings.Contains(sources, line))
			}
		}
	}
}
