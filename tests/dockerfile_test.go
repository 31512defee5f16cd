package tests

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// stage is one FROM of the Dockerfile and its instructions.
type stage struct {
	name, base   string
	instructions []instruction
}

// instruction is one logical line: continuation lines are joined, comments are gone.
type instruction struct{ keyword, arguments string }

// all is the arguments of every instruction with this keyword.
func (s stage) all(keyword string) []string {
	var found []string
	for _, i := range s.instructions {
		if i.keyword == keyword {
			found = append(found, i.arguments)
		}
	}
	return found
}

func (s stage) last(keyword string) string {
	if found := s.all(keyword); len(found) > 0 {
		return found[len(found)-1]
	}
	return ""
}

var continuation = regexp.MustCompile(`\\\n\s*`)

func parseDockerfile(t *testing.T, text string) []stage {
	t.Helper()
	var stages []stage
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			kept = append(kept, line)
		}
	}
	for line := range strings.Lines(continuation.ReplaceAllString(strings.Join(kept, ""), "")) {
		keyword, arguments, _ := strings.Cut(strings.TrimSpace(line), " ")
		if keyword == "" {
			continue
		}
		if keyword == "FROM" {
			words := slices.DeleteFunc(strings.Fields(arguments), func(w string) bool { return strings.HasPrefix(w, "--") })
			if len(words) != 3 || words[1] != "AS" {
				t.Fatalf("FROM %s: every stage has a name: FROM image AS name", arguments)
			}
			stages = append(stages, stage{name: words[2], base: words[0]})
			continue
		}
		if len(stages) == 0 {
			t.Fatalf("%s before the first FROM", keyword)
		}
		s := &stages[len(stages)-1]
		s.instructions = append(s.instructions, instruction{keyword, arguments})
	}
	return stages
}

func dockerStages(t *testing.T) map[string]stage {
	t.Helper()
	stages := make(map[string]stage)
	for _, s := range parseDockerfile(t, readRepoFile(t, "Dockerfile")) {
		stages[s.name] = s
	}
	if got, want := slices.Sorted(maps.Keys(stages)), []string{"build", "empty", "proxy"}; !slices.Equal(got, want) {
		t.Fatalf("stages %v, want %v", got, want)
	}
	return stages
}

func TestDockerfileBases(t *testing.T) {
	stages := dockerStages(t)
	wants := map[string]string{
		"build": "golang:" + goMinor(t) + "-bookworm",
		"empty": "debian:12-slim",
		"proxy": "envoyproxy/envoy:contrib-v" + envoyVersion(t),
	}
	for name, want := range wants {
		if stages[name].base != want {
			t.Errorf("stage %s is on %s, want %s", name, stages[name].base, want)
		}
	}
	parsed := parseDockerfile(t, readRepoFile(t, "Dockerfile"))
	if last := parsed[len(parsed)-1].name; last != "proxy" {
		t.Errorf("the last stage, which docker builds when none is named, is %s, want proxy", last)
	}
}

// goMinor is the Go that go.mod asks for, without its patch level.
func goMinor(t *testing.T) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(readRepoFile(t, "go.mod"))
	if found == nil {
		t.Fatal("go.mod: no go line")
	}
	return found[1]
}

// envoyVersion is the Envoy that `make envoy` brings, so that the image and the tests run the same.
func envoyVersion(t *testing.T) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^readonly version=(\S+)$`).FindStringSubmatch(readRepoFile(t, "build/envoy.sh"))
	if found == nil {
		t.Fatal("build/envoy.sh: no version")
	}
	return found[1]
}

func TestImagesRunAsTheProxyUser(t *testing.T) {
	stages := dockerStages(t)
	for _, name := range []string{"proxy", "empty"} {
		if got := stages[name].last("USER"); got != "1337:1337" {
			t.Errorf("stage %s: USER %q, want 1337:1337", name, got)
		}
		if got := stages[name].last("ENTRYPOINT"); got != `["/usr/local/bin/pilot-agent"]` {
			t.Errorf("stage %s: ENTRYPOINT %s", name, got)
		}
	}
	setup := strings.Join(stages["proxy"].all("RUN"), "\n")
	for _, want := range []string{"iptables", "--uid 1337", "/etc/istio/proxy", "/var/lib/istio/data"} {
		if !strings.Contains(setup, want) {
			t.Errorf("stage proxy does not set up %s:\n%s", want, setup)
		}
	}
}

func TestCopiedFilesExist(t *testing.T) {
	stages := dockerStages(t)
	commands := builtBinaries(t)
	wants := map[string]string{"proxy": "pilot-agent", "empty": "pilot-agent-standby"}
	for name, binary := range wants {
		want := "--from=build /src/bin/" + binary + " /usr/local/bin/pilot-agent"
		if got := stages[name].all("COPY"); !slices.Equal(got, []string{want}) {
			t.Errorf("stage %s copies %q, want %q", name, got, want)
		}
		if !slices.Contains(commands, binary) {
			t.Errorf("stage %s copies bin/%s, but make build makes %v", name, binary, commands)
		}
	}
	if got := stages["build"].last("WORKDIR"); got != "/src" {
		t.Errorf("the sources are built in %s, and copied from /src", got)
	}
	for _, arguments := range stages["build"].all("COPY") {
		words := strings.Fields(arguments)
		for _, source := range words[:len(words)-1] {
			if source != "." {
				readRepoFile(t, source) // fails when it is not there
			}
		}
	}
}

// builtBinaries is what `make build` puts into bin/: one for each command.
func builtBinaries(t *testing.T) []string {
	t.Helper()
	if !strings.Contains(readRepoFile(t, "Makefile"), "-o bin/ ./cmd/...") {
		t.Fatal("make build no longer builds ./cmd/... into bin/")
	}
	var binaries []string
	for _, p := range listPackages(t) {
		if within(p.short(), "cmd") && p.Name == "main" {
			binaries = append(binaries, path.Base(p.ImportPath))
		}
	}
	return binaries
}

func TestImageIsBuiltForItsPlatform(t *testing.T) {
	build := dockerStages(t)["build"]
	if run := strings.Join(build.all("RUN"), "\n"); !strings.Contains(run, "GOARCH=${TARGETARCH}") || !strings.Contains(run, "make build") {
		t.Errorf("the build stage does not make build for TARGETARCH:\n%s", run)
	}
	if arguments := build.all("ARG"); !slices.Contains(arguments, "TARGETARCH") {
		t.Errorf("TARGETARCH is used but not declared: %v", arguments)
	}
	if !strings.Contains(readRepoFile(t, "Dockerfile"), "--platform=$BUILDPLATFORM") {
		t.Error("the build stage is emulated: it needs --platform=$BUILDPLATFORM")
	}
}
