package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/demo/screen"
	"understudy.mesh/demo/story"
	"understudy.mesh/tests/lab"
)

const (
	// registryHost is the manual's, and registryIP where it is here.
	registryHost = "acree-1-registry.cn-hangzhou.cr.aliyuncs.com"
	registryIP   = "198.51.100.60"
	user         = "demo"
	password     = "demo-password"
	// bcryptCost makes a request to the registry take so long that Pulling can be seen.
	bcryptCost = "10"

	appPort = "9080"
	appURL  = "http://" + lab.PodIP + ":" + appPort + "/details/123"

	// limit is how long anything may take on a busy machine. On a free one it is a few seconds.
	limit = 2 * time.Minute
	// drain is how long an old generation may keep its connections.
	drain = 5 * time.Second
)

// meshFile has a connection count as HTTP however long its client leaves it silent; what counts as TCP passes no filter.
const meshFile = "protocolDetectionTimeout: 0s\n"

// Where the volumes of the manual are in the container.
const (
	filtersMount = "/var/local/lib/wasm-filters"
	secretsMount = "/etc/istio/wasm-secrets"
	caMount      = "/etc/istio/config/registry-ca.pem"
	labelsMount  = "/etc/istio/pod/labels"
)

// filters is the story, and what is on its stage.
type filters struct {
	*screen.Screen
	lab.T
	*lab.Lab
	slots    *lab.Slots
	images   [2]lab.Image // of the slots
	dir      string       // in which the commands of the story are typed
	registry *exec.Cmd    // nil: it is stopped
	versions int          // of the volumes that the kubelet keeps
}

// newFilters makes a pod named details and the world outside of it; no agent runs.
func newFilters(t lab.T, s *screen.Screen) *filters {
	f := &filters{Screen: s, T: t, Lab: lab.New(t)}
	f.dir = filepath.Join(f.Lab.Dir, "demo")
	for _, dir := range []string{"wasmfilters-dir", "secrets/asmwasm-cache", "tls", "registry", "docker"} {
		f.must(os.MkdirAll(filepath.Join(f.dir, dir), 0o755))
	}
	f.StartDNS(t, map[string][]string{"details": {lab.PodIP}, "details.default.svc.cluster.local": {lab.PodIP}, registryHost: {registryIP}})
	ca := lab.NewCA(t)
	ca.WriteFile(t, f.path("tls/ca.pem"))
	ca.ServerFiles(t, f.path("tls"), registryHost)
	f.write("labels", "app=\"details\"\nversion=\"v1\"\n")
	f.write("resolv.conf", lab.DefaultResolvConf)
	f.must(os.Symlink(filepath.Join(lab.RepoRoot(t), "demo/wasm/files"), f.path("files")))
	lab.ServeHTTP(t, f.Pod.Listen(t, "[::]:"+appPort), "details")
	f.Capture(t)
	f.slots = f.NewSlots(t, lab.SlotsOptions{
		Args: []string{"--upgradeDrainDuration", drain.String(), "--meshConfig", lab.ConfigMount + "/mesh.yaml"},
		Env:  []string{"UNDERSTUDY_WASM_CA_FILE=" + caMount},
	})
	f.must(os.WriteFile(filepath.Join(f.slots.HostConfig, "mesh.yaml"), []byte(meshFile), 0o644))
	f.must(os.Symlink(filepath.Join(f.slots.HostConfig, "mesh"), f.path("mesh")))
	mounts := map[string]string{
		filtersMount: f.path("wasmfilters-dir"), secretsMount: f.path("secrets"), caMount: f.path("tls/ca.pem"), labelsMount: f.path("labels"),
	}
	f.images = [2]lab.Image{
		{Name: "proxy:v1", Agent: lab.AgentBinary(t), Envoy: lab.OtherEnvoyBinary(t), Files: mounts},
		{Name: "proxy:v2", Agent: lab.AgentBinary(t), Envoy: lab.EnvoyBinary(t), Files: mounts},
	}
	return f
}

func (f *filters) must(err error) {
	if err != nil {
		f.Fatalf("%v", err)
	}
}

func (f *filters) path(name string) string { return filepath.Join(f.dir, name) }

func (f *filters) write(name, text string) {
	f.must(os.WriteFile(f.path(name), []byte(text), 0o644))
}

// typed shows and runs a command line, typed outside of the pod, and returns what it has said and whether it succeeded. The name
// server is the stage's, and so are the authority of the registry and the file in which oras keeps a login.
func (f *filters) typed(line string) (string, bool) {
	f.Say("$ " + line)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := f.Out.Command(ctx, "unshare", "--mount", "sh", "-c", `mount --bind resolv.conf /etc/resolv.conf && exec sh -c "$1"`, "demo", line)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(lab.RepoRoot(f.T), "bin")+":"+os.Getenv("PATH"),
		"DOCKER_CONFIG="+f.path("docker"), "SSL_CERT_FILE="+f.path("tls/ca.pem"), "no_proxy=*")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// run is typed of a command that must succeed, and whose answer is shown.
func (f *filters) run(line string) {
	out, ok := f.typed(line)
	f.Answer(out)
	if !ok {
		f.Fatalf("the command has failed: %s", line)
	}
}

// push has oras push a module, as the manual's chapter 5 does, and reports whether it did.
func (f *filters) push(image, file string) bool {
	out, ok := f.typed("oras push " + registryHost + "/asm/" + image + " --config files/runtime-config.json:application/vnd.module.wasm.config.v1+json " +
		file + ":application/vnd.module.wasm.content.layer.v1+wasm")
	f.Answer(story.Containing(out, "Error", "Pushed", "Digest"))
	return ok
}

// agent shows and runs a command of pilot-agent's in a slot.
func (f *filters) agent(slot int, arguments ...string) string {
	f.Command("pilot-agent", arguments)
	return f.slots.List[slot].Run(f.T, append([]string{lab.AgentPath}, arguments...)...).Stdout
}

// curl shows and runs the manual's command, and shows of its answer what matters.
func (f *filters) curl() string {
	out, _ := f.typed("curl -v http://details:" + appPort + "/details/123")
	f.Answer(story.Containing(out, "< HTTP", "< resp-header", "server=", "RBAC"))
	return out
}

// has returns nil if the application answers with a value of a header; "" is without it.
func (f *filters) has(name, value string) error {
	resp, err := f.Out.Client().Get(appURL)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if got := resp.Header.Get(name); resp.StatusCode != http.StatusOK || got != value {
		return fmt.Errorf("status %d, %s %q", resp.StatusCode, name, got)
	}
	return nil
}

// eventually waits until the application answers with a value of a header.
func (f *filters) eventually(what, name, value string) {
	lab.Eventually(f.T, limit, what, func() error { return f.has(name, value) })
}

// becomes checks that it does.
func (f *filters) becomes(name, value, what string) {
	f.eventually(what, name, value)
	f.Check(true, what)
}

// refused returns nil if requests to the application are.
func (f *filters) refused() error {
	status, body, err := f.Out.Get(appURL)
	if err == nil && status != http.StatusForbidden {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	return err
}

// publish puts files into a volume as the kubelet does for a ConfigMap or a Secret: what is replaced is the link ..data.
func (f *filters) publish(volume string, files map[string]string) {
	f.versions++
	version := "..version_" + strconv.Itoa(f.versions)
	f.must(os.Mkdir(filepath.Join(f.path(volume), version), 0o755))
	for name, from := range files {
		text, err := os.ReadFile(f.path(from))
		f.must(err)
		f.must(os.WriteFile(filepath.Join(f.path(volume), version, name), text, 0o644))
		if err := os.Symlink("..data/"+name, filepath.Join(f.path(volume), name)); !errors.Is(err, os.ErrExist) {
			f.must(err)
		}
	}
	f.must(os.Symlink(version, filepath.Join(f.path(volume), "..data_tmp")))
	f.must(os.Rename(filepath.Join(f.path(volume), "..data_tmp"), filepath.Join(f.path(volume), "..data")))
}

// start runs the agent of a slot, which is the newest of the pod, until it is ready.
func (f *filters) start(slot, version, other int) {
	env := []string{fmt.Sprintf("%s=%d", lab.VersionEnv, version), fmt.Sprintf("%s=%d", lab.VersionAltEnv, other)}
	f.must(f.slots.List[slot].Start(f.images[slot], env...))
	f.slots.List[slot].WaitRole(f.T, lab.RoleServing)
	lab.Eventually(f.T, limit, "the pod is ready", f.ready)
}

func (f *filters) ready() error {
	status, body, err := f.Out.Get("http://" + lab.PodIP + ":" + lab.HealthPort + "/healthz/ready")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	return err
}

// startRegistry runs Debian's docker-registry outside of the pod, with TLS and htpasswd.
func (f *filters) startRegistry() {
	f.write("registry.yml", fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "%s:443", tls: {certificate: %s, key: %s}}
auth: {htpasswd: {realm: demo, path: %s}}
`, f.path("registry"), registryIP, f.path("tls/tls.crt"), f.path("tls/tls.key"), f.path("htpasswd")))
	registry := f.Out.Command(context.Background(), "docker-registry", "serve", f.path("registry.yml"))
	log, err := os.Create(f.path("registry.log"))
	f.must(err)
	registry.Stderr = log
	err = registry.Start()
	_ = log.Close() // the registry has it
	f.must(err)
	f.registry = registry
	f.Cleanup(f.stopRegistry)
	lab.Eventually(f.T, lab.Deadline, "the registry listens", func() error {
		c, err := f.Out.Dial(context.Background(), "tcp", registryIP+":443")
		if err == nil {
			return c.Close()
		}
		said, _ := os.ReadFile(f.path("registry.log"))
		return fmt.Errorf("%w; it says %q", err, said)
	})
}

func (f *filters) stopRegistry() {
	if f.registry == nil {
		return
	}
	_ = f.registry.Process.Kill()
	_ = f.registry.Wait()
	f.registry = nil
}

// module is what /debug/configz says of one filter.
type module struct{ Document, Phase, Instead, Reason string }

// modules are all, by their documents.
func (f *filters) modules() (map[string]module, error) {
	_, body, err := f.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/debug/configz")
	if err != nil {
		return nil, err
	}
	var page struct{ Wasm []module }
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	all := map[string]module{}
	for _, m := range page.Wasm {
		all[m.Document] = m
	}
	return all, nil
}

// until waits until the filter of a document is in a phase, and returns the phases that it was seen in.
func (f *filters) until(document, phase string) (seen []string) {
	lab.Eventually(f.T, limit, document+" is "+phase, func() error {
		all, err := f.modules()
		if err != nil {
			return err
		}
		m := all[document]
		if len(seen) == 0 || seen[len(seen)-1] != m.Phase {
			seen = append(seen, m.Phase)
		}
		if m.Phase != phase {
			return fmt.Errorf("it is %+v", m)
		}
		return nil
	})
	return seen
}

// failed returns nil if a WasmPlugin has no module, for a reason.
func (f *filters) failed(name, reason string) error {
	all, err := f.modules()
	if m := all[plugin+name]; err == nil && (m.Instead == "" || !strings.Contains(m.Reason, reason)) {
		err = fmt.Errorf("it is %+v", m)
	}
	return err
}

// envoys are the processes of Envoys in the pod.
func (f *filters) envoys() []string {
	all := f.ProcessesOf(lab.EnvoyPath)
	slices.Sort(all)
	return all
}

// inPod shows and runs a command in the pod's network, as one with kubectl port-forward would, and returns what it has said.
func (f *filters) inPod(argv ...string) string {
	f.Command(argv[0], argv[1:])
	return f.Pod.Run(f.T, argv...)
}
