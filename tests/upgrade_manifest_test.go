package tests

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/config"
)

// upgradePage is where a user learns to upgrade the pods of manifests/.
const upgradePage = "docs/upgrade.md"

// proxy is the one container that is upgraded.
func (r *released) proxy(t *testing.T) container {
	t.Helper()
	if c := r.sidecarSet.Spec.Containers; len(c) == 1 && c[0].Name == "istio-proxy" {
		return c[0]
	}
	t.Fatal("manifests/sidecarset.yaml: want the one container istio-proxy")
	return container{}
}

func TestSidecarSetMatchesTheApplication(t *testing.T) {
	r := readManifests(t)
	set, pod := r.sidecarSet.Spec, r.deployment.Spec.Template
	for _, selector := range []map[string]string{set.Selector.MatchLabels, r.deployment.Spec.Selector.MatchLabels, r.service.Spec.Selector} {
		for key, value := range selector {
			if pod.Metadata.Labels[key] != value {
				t.Errorf("the pod's labels %v do not have %s=%s", pod.Metadata.Labels, key, value)
			}
		}
	}
	for _, namespace := range []string{r.deployment.Metadata.Namespace, r.service.Metadata.Namespace} {
		if namespace != set.Namespace {
			t.Errorf("the SidecarSet is for namespace %s, the application in %s", set.Namespace, namespace)
		}
	}
	if pod.Metadata.Labels["sidecar.istio.io/inject"] != "false" {
		t.Error("Istio may inject its own proxy as well")
	}
	if port := r.service.Spec.Ports[0].TargetPort; port != pod.Spec.Containers[0].Ports[0].ContainerPort {
		t.Errorf("the Service leads to port %d, where the application is not", port)
	}
}

func TestSidecarSetIsUpgradedHot(t *testing.T) {
	r := readManifests(t)
	c := r.proxy(t)
	if c.UpgradeStrategy.UpgradeType != "HotUpgrade" || c.UpgradeStrategy.HotUpgradeEmptyImage == c.Image {
		t.Errorf("upgradeStrategy %+v", c.UpgradeStrategy)
	}
	if !slices.Equal(c.Lifecycle.PostStart.Exec.Command, []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait"}) {
		t.Errorf("postStart is %q: the hook must block until the hand-off is over", c.Lifecycle.PostStart.Exec.Command)
	}
	if c.ImagePullPolicy != "IfNotPresent" {
		t.Errorf("imagePullPolicy %s: a pull before the upgrade is of no use", c.ImagePullPolicy)
	}
	if c.PodInjectPolicy != "BeforeAppContainer" {
		t.Errorf("podInjectPolicy %s: the application does not wait for the proxy", c.PodInjectPolicy)
	}
	for _, e := range slices.Concat(c.Env, r.sidecarSet.Spec.InitContainers[0].Env) {
		if strings.HasPrefix(e.Name, "SIDECARSET_VERSION") {
			t.Errorf("%s is Kruise's to set", e.Name)
		}
	}
	next := strings.Split(r.imagePullJob.Spec.Image, ":")
	if now := strings.Split(c.Image, ":"); next[0] != now[0] || next[1] == now[1] {
		t.Errorf("ImagePullJob pulls %s, which is no other tag of %s", r.imagePullJob.Spec.Image, c.Image)
	}
	for _, document := range []string{upgradePage, twin(upgradePage)} {
		if !strings.Contains(readRepoFile(t, document), r.imagePullJob.Spec.Image) {
			t.Errorf("%s upgrades to another image than ImagePullJob pulls, %s", document, r.imagePullJob.Spec.Image)
		}
	}
}

func TestSidecarSetRunsWithoutPrivileges(t *testing.T) {
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	c := readManifests(t).proxy(t)
	s := c.SecurityContext
	if s.RunAsUser == nil || *s.RunAsUser != 1337 || s.RunAsGroup == nil || *s.RunAsGroup != 1337 {
		t.Errorf("user and group must be 1337: capture lets it pass by that")
	}
	if !is(s.RunAsNonRoot, true) || !is(s.AllowPrivilegeEscalation, false) || !is(s.Privileged, false) || !is(s.ReadOnlyRootFilesystem, true) ||
		!slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || s.Capabilities.Add != nil {
		t.Errorf("securityContext %+v", s)
	}
}

func TestSidecarSetVolumes(t *testing.T) {
	r := readManifests(t)
	set, c := r.sidecarSet.Spec, r.proxy(t)
	mounted := make(map[string]string)
	for _, m := range c.VolumeMounts {
		mounted[m.MountPath] = m.Name
	}
	for _, v := range set.Volumes {
		if !slices.ContainsFunc(c.VolumeMounts, func(m volumeMount) bool { return m.Name == v.Name }) {
			t.Errorf("nothing mounts %s, and Kruise adds only what is mounted", v.Name)
		}
		if v.ConfigMap != nil && r.configMaps[v.ConfigMap.Name].Metadata.Namespace != set.Namespace {
			t.Errorf("volume %s: there is no ConfigMap %s in the pods' namespace", v.Name, v.ConfigMap.Name)
		}
	}
	// What the agent writes must outlive a container, and be seen from both.
	for _, path := range []string{"/etc/asm/uds", "/etc/istio/proxy", "/var/lib/istio/data"} {
		i := slices.IndexFunc(set.Volumes, func(v volume) bool { return v.Name == mounted[path] })
		if i < 0 || set.Volumes[i].EmptyDir == nil {
			t.Errorf("%s is no emptyDir", path)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil || e.ValueFrom.ConfigMapKeyRef == nil {
			continue
		}
		if ref := *e.ValueFrom.ConfigMapKeyRef; r.configMaps[ref.Name].Data[ref.Key] == "" {
			t.Errorf("%s: there is no %s in ConfigMap %s", e.Name, ref.Key, ref.Name)
		}
	}
	mesh := r.configMaps["mesh"]
	if len(mesh.Data) == 0 {
		t.Error("ConfigMap mesh is empty")
	}
	for name, text := range mesh.Data {
		checkServiceEntries(t, "manifests/configmap.yaml, "+name, text)
	}
}

// What the SidecarSet says is what the agent understands, without a warning.
func TestSidecarSetSettings(t *testing.T) {
	r := readManifests(t)
	c := r.proxy(t)
	cfg, warnings, err := config.Load(config.Sources{Flags: flagsOf(t, c.Args), Environ: environOf(c.Env)})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("the agent warns: %v", w)
	}
	mounts := make(map[string]bool)
	for _, m := range c.VolumeMounts {
		mounts[m.MountPath] = true
	}
	for _, path := range []string{cfg.ConfigDir, cfg.HandoffDir, cfg.ConfigPath} {
		if !mounts[path] {
			t.Errorf("the agent is told to use %q, where no volume is", path)
		}
	}
	grace := time.Duration(r.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	if cfg.UpgradeDrainDuration <= 0 || cfg.UpgradeDrainDuration > grace {
		t.Errorf("the old generation may drain for %v, but the kubelet ends it after %v", cfg.UpgradeDrainDuration, grace)
	}
	if init := r.sidecarSet.Spec.InitContainers[0]; cfg.DNSCapture != slices.Contains(environOf(init.Env), "ISTIO_META_DNS_CAPTURE=true") {
		t.Error("istio-init and istio-proxy differ about DNS capture")
	}
}

// flagsOf reads the arguments after "proxy sidecar"; every one must be a flag with its value.
func flagsOf(t *testing.T, arguments []string) map[string]string {
	t.Helper()
	if len(arguments) < 2 || !slices.Equal(arguments[:2], []string{"proxy", "sidecar"}) {
		t.Fatalf("arguments %q", arguments)
	}
	flags := make(map[string]string)
	for i := 2; i < len(arguments); i++ {
		name, isFlag := strings.CutPrefix(arguments[i], "--")
		name, value, joined := strings.Cut(name, "=")
		if !joined && i+1 < len(arguments) {
			i++
			value = arguments[i]
		}
		if !isFlag || value == "" || strings.HasPrefix(value, "-") {
			t.Fatalf("argument %q has no value", arguments[i])
		}
		flags[name] = value
	}
	return flags
}

// environOf is the environment as Kubernetes makes it, with an example where it fills in.
func environOf(vars []envVar) []string {
	examples := map[string]string{"INSTANCE_IP": "192.0.2.2"}
	var environ []string
	for _, e := range vars {
		value := e.Value
		if e.ValueFrom != nil {
			if value = examples[e.Name]; value == "" {
				value = "example"
			}
		}
		environ = append(environ, e.Name+"="+value)
	}
	return environ
}

// The arguments are flags that the commands have, and those of istio-iptables make rules.
func TestManifestArgumentsAreAccepted(t *testing.T) {
	agent := buildAgent(t)
	r := readManifests(t)
	help, err := exec.Command(agent, "proxy", "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, help)
	}
	for name := range flagsOf(t, r.proxy(t).Args) {
		if !regexp.MustCompile(`(?m)\s--` + regexp.QuoteMeta(name) + `\s`).Match(help) {
			t.Errorf("pilot-agent proxy has no flag --%s", name)
		}
	}
	for _, init := range r.sidecarSet.Spec.InitContainers {
		cmd := exec.Command(agent, append(slices.Clone(init.Args), "--dry-run")...)
		cmd.Env = append(os.Environ(), environOf(init.Env)...)
		rules, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", init.Name, err, rules)
		}
		for _, want := range []string{"15001", "15006", "15053", "1337"} {
			if !strings.Contains(string(rules), want) {
				t.Errorf("%s: no rule has %s:\n%s", init.Name, want, rules)
			}
		}
	}
}

// Every image of ours is one that the page says how to build.
func TestManifestImagesAreBuilt(t *testing.T) {
	r := readManifests(t)
	c := r.proxy(t)
	for _, image := range []string{r.sidecarSet.Spec.InitContainers[0].Image, c.Image, c.UpgradeStrategy.HotUpgradeEmptyImage} {
		for _, document := range []string{upgradePage, twin(upgradePage)} {
			if !strings.Contains(readRepoFile(t, document), "docker buildx build -t "+image+" ") {
				t.Errorf("%s does not say how to build %s", document, image)
			}
		}
	}
}

// The JSON patch of the page changes the image and nothing else.
func TestPatchOfThePage(t *testing.T) {
	r := readManifests(t)
	found := regexp.MustCompile(`(?m)^kubectl patch sidecarset (\S+) --type json -p '(.*)'$`).FindStringSubmatch(readRepoFile(t, upgradePage))
	if found == nil {
		t.Fatalf("%s patches no SidecarSet", upgradePage)
	}
	var patch []struct{ Op, Path, Value string }
	if err := json.Unmarshal([]byte(found[2]), &patch); err != nil {
		t.Fatalf("%s: %v", found[2], err)
	}
	if found[1] != r.sidecarSet.Metadata.Name || len(patch) != 1 || patch[0].Op != "replace" || patch[0].Path != "/spec/containers/0/image" ||
		patch[0].Value != r.imagePullJob.Spec.Image {
		t.Errorf("SidecarSet %s, patch %+v", found[1], patch)
	}
}

// Messages and words that the papers explain are those of the agent.
func TestTroubleQuotesTheAgent(t *testing.T) {
	handoff := []string{"hotrestart", "pkg"}
	everything := []string{"cmd", "dnsproxy", "hotrestart", "iptables", "pkg"}
	sections := []struct {
		document, heading string
		from              []string // the packages that say it
		quotes            int      // at least
	}{
		{upgradePage, "## When an upgrade fails", handoff, 10},
		{twin(upgradePage), "## 升级失败时", handoff, 10},
		{upgradePage, "## What happens", handoff, 5},
		{twin(upgradePage), "## 升级过程", handoff, 5},
		{"docs/operate.md", "## Readiness", handoff, 5},
		{"docs/operate.zh.md", "## 就绪", handoff, 5},
		{"docs/mesh.md", "## What became of a document", handoff, 5},
		{"docs/mesh.zh.md", "## 文档的结果", handoff, 5},
		{"docs/trouble.md", "## What the messages mean", everything, 12},
		{"docs/trouble.zh.md", "## 各条消息的含义", everything, 12},
	}
	for _, section := range sections {
		if quotes := checkQuotes(t, section.document, section.heading, shippedSources(t, section.from...)); quotes < section.quotes {
			t.Errorf("%s: found only %d quotes: the test no longer sees them", section.document, quotes)
		}
	}
}

// checkQuotes looks for what the first column of a section's table quotes, and returns how much that was.
func checkQuotes(t *testing.T, document, heading, sources string) (quotes int) {
	t.Helper()
	kubernetes := []string{"CrashLoopBackOff", "ImagePullBackOff", "UpdateImmutableField", "SidecarSetUpgradable"}
	_, table, found := strings.Cut(readRepoFile(t, document), heading+"\n")
	if !found {
		t.Fatalf("%s has no section %s", document, heading)
	}
	table, _, _ = strings.Cut(table, "\n#")
	for _, row := range strings.Split(table, "\n| ")[2:] { // without the head
		first, _, _ := strings.Cut(row, " | ")
		for _, quote := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			quotes++
			said := quote[1]
			if !strings.Contains(said, " ") {
				said = strconv.Quote(said) // a refusal's code
			}
			if !slices.Contains(kubernetes, quote[1]) && !strings.Contains(sources, said) {
				t.Errorf("%s explains %q, which the agent never says", document, quote[1])
			}
		}
	}
	return quotes
}
