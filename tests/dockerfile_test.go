package tests

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy.mesh/build/contents"
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
			if keyword != "ARG" {
				t.Fatalf("%s before the first FROM", keyword)
			}
			continue // for a FROM
		}
		s := &stages[len(stages)-1]
		s.instructions = append(s.instructions, instruction{keyword, arguments})
	}
	return stages
}

// onIstio is the stage on Istio's own image, which `make images` does not make.
const onIstio = "proxy-istio"

func dockerStages(t *testing.T) map[string]stage {
	t.Helper()
	stages := make(map[string]stage)
	for _, s := range parseDockerfile(t, readRepoFile(t, "Dockerfile")) {
		stages[s.name] = s
	}
	wants := []string{"build", onIstio}
	for _, image := range contents.Images {
		wants = append(wants, image.Name)
	}
	if got := slices.Sorted(maps.Keys(stages)); !slices.Equal(got, slices.Sorted(slices.Values(wants))) {
		t.Fatalf("stages %v, want %v", got, wants)
	}
	return stages
}

func TestDockerfileBases(t *testing.T) {
	stages := dockerStages(t)
	wants := map[string]string{
		"build": "golang:" + goMinor(t) + "-bookworm",
		"empty": "debian:12-slim",
		"proxy": "envoyproxy/envoy:contrib-v" + envoyVersion(t),
		// Nothing but one program that is linked with nothing.
		"injector": "scratch",
		onIstio:    "${ISTIO_PROXY}",
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

// The Dockerfile and `make images` make the same images, as far as both say what is in them.
func TestDockerfileIsTheTable(t *testing.T) {
	stages := dockerStages(t)
	commands := builtBinaries(t)
	for _, image := range contents.Images {
		s := stages[image.Name]
		if got := s.last("USER"); got != contents.User {
			t.Errorf("stage %s: USER %q, want %s", s.name, got, contents.User)
		}
		if got, want := s.last("ENTRYPOINT"), fmt.Sprintf("[%q]", image.Entrypoint()); got != want {
			t.Errorf("stage %s: ENTRYPOINT %s, want %s", s.name, got, want)
		}
		var copies []string
		for _, program := range image.Programs {
			if program.Name == contents.Envoy {
				continue // the base has it
			}
			copies = append(copies, "--from=build /src/bin/"+program.Name+" "+program.Path)
			if !slices.Contains(commands, program.Name) {
				t.Errorf("image %s has %s, but make build makes %v", image.Name, program.Name, commands)
			}
		}
		if got := s.all("COPY"); !slices.Equal(got, copies) {
			t.Errorf("stage %s copies %q, want %q", s.name, got, copies)
		}
	}
}

// Istio's own image gets the agent in the place of Istio's, and starts as ours does.
func TestDockerfileOnIstio(t *testing.T) {
	stages := dockerStages(t)
	s, proxy := stages[onIstio], stages["proxy"]
	for _, keyword := range []string{"COPY", "USER", "ENTRYPOINT"} {
		if got, want := s.all(keyword), proxy.all(keyword); !slices.Equal(got, want) {
			t.Errorf("stage %s: %s %q, want %q", s.name, keyword, got, want)
		}
	}
	if !regexp.MustCompile(`(?m)^ARG ISTIO_PROXY=istio/proxyv2:\S+$`).MatchString(readRepoFile(t, "Dockerfile")) {
		t.Error("the stage has no base unless one is given, which fails every build")
	}
}

func TestDockerfileSetsUpTheProxy(t *testing.T) {
	setup := strings.Fields(strings.Join(dockerStages(t)["proxy"].all("RUN"), " "))
	proxy := contents.Images[0]
	wants := []string{strconv.Itoa(contents.UID), strconv.Itoa(contents.GID)}
	for _, name := range proxy.Packages {
		if name != "base-files" && name != "busybox-static" { // its base has those, or better
			wants = append(wants, name)
		}
	}
	for _, directory := range proxy.Directories {
		wants = append(wants, directory.Path)
	}
	for _, want := range wants {
		if !slices.Contains(setup, want) {
			t.Errorf("stage proxy does not set up %s:\n%s", want, setup)
		}
	}
}

func TestCopiedSourcesExist(t *testing.T) {
	stages := dockerStages(t)
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
	if !strings.Contains(readRepoFile(t, "Makefile"), "\nBIN ?= bin\n") || !strings.Contains(readRepoFile(t, "Makefile"), "-o '$(BIN)/' ./cmd/...") {
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
