package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.mesh/demo/story"
	"understudy.mesh/tests/lab"
)

// What the filter of the story adds to a response, and what other versions of it do.
const (
	header  = "resp-header-demo"
	added   = "added by our filter"
	updated = "added by its update"
	tagged  = "resp-header-tags"
)

// The documents of the story, as the agent names them.
const (
	envoyFilter = "EnvoyFilter default/details-v1-examplefilter"
	deployment  = "ASMFilterDeployment default/details-v1-wasmfiltersample"
	plugin      = "WasmPlugin default/"
)

func (f *filters) thePod() {
	f.Title("1. A pod")
	f.Say("details listens on port "+appPort+", beside pilot-agent with a real Envoy: uid 1337, no capabilities, a read-only root, no control plane.",
		"It has the volumes of chapters 4 and 5: "+filtersMount+" of a ConfigMap, and the pull secrets. Both are empty.",
		"Its mesh file says protocolDetectionTimeout: 0s, so that no client gets past a filter by saying nothing for a while.")
	f.start(0, 1, 0)
	out := f.curl()
	f.Check(strings.Contains(out, "server=details") && !strings.Contains(out, header), "details answers, and nothing is added")
}

func (f *filters) theFile() {
	f.Title("2. Chapter 4: a module in a ConfigMap")
	f.run("wat2wasm files/example-filter.wat -o example-filter.wasm && wc -c example-filter.wasm")
	f.Say("The kubelet brings it into the volume.")
	f.publish("wasmfilters-dir", map[string]string{"example-filter.wasm": "example-filter.wasm"})
	f.run("cp files/envoyfilter.yaml mesh/")
	f.until(envoyFilter, "InForce")
	f.Answer(f.agent(0, "wasm", "list"))
	f.Check(strings.Contains(f.curl(), "< "+header+": "+added+"\r\n"), "the header is there")
	out := f.inPod("curl", "-sS", "-XPOST", "localhost:15000/logging?wasm=debug")
	f.Answer(story.Containing(out, "wasm:"))
	f.Check(strings.Contains(out, "wasm: debug"), "Envoy logs what Wasm does")
}

func (f *filters) anotherFile() {
	f.Title("3. Another module in the ConfigMap")
	before := f.envoys()
	tr := f.load(added, updated)
	f.run("sed 's/" + added + "/" + updated + "/' files/example-filter.wat | wat2wasm - -o update.wasm")
	f.Say("The kubelet replaces the link ..data of the volume.")
	f.publish("wasmfilters-dir", map[string]string{"example-filter.wasm": "update.wasm"})
	f.eventually("the module is another", header, updated)
	f.Check(strings.Contains(f.curl(), "< "+header+": "+updated+"\r\n"), "the header is another")
	f.Check(f.end(tr).whole(), "no request has failed, and none was without the header")
	f.Check(slices.Equal(before, f.envoys()), "and it is the same process of Envoy")
	f.run("rm mesh/envoyfilter.yaml")
	f.becomes(header, "", "without the document the header is gone")
}

func (f *filters) theRegistry() {
	f.Title("4. Chapter 5: a module in a registry")
	f.Say("A registry, with TLS and with passwords, is outside of the pod. Its name is the manual's.")
	f.run("echo " + password + " | htpasswd -niBC " + bcryptCost + " " + user + " >htpasswd")
	f.startRegistry()
	f.Check(!f.push("asm-test:v0.1", "example-filter.wasm"), "nobody pushes without a login")
	f.run("echo " + password + " | oras login --username=" + user + " --password-stdin " + registryHost)
	f.Check(f.push("asm-test:v0.1", "example-filter.wasm"), "with one the module is in the registry")
}

func (f *filters) theDeployment() {
	f.Title("5. The manual's ASMFilterDeployment")
	f.run("cp files/filter.yaml mesh/")
	f.until(deployment, "Failed")
	out := f.agent(0, "wasm", "list")
	f.Answer(out)
	f.Check(strings.Contains(out, "401"), "without the pull secret the registry refuses it (401), and the agent says so")
	lab.Eventually(f.T, limit, "it fails closed", f.refused)
	f.Check(strings.Contains(f.curl(), "< HTTP/1.1 403"), "a filter that does not say otherwise fails closed (403)")
	f.Say("", "The pull secret is the file that oras login has written. In a cluster it is made by",
		"kubectl create secret generic asmwasm-cache --from-file=.dockerconfigjson=config.json --type=kubernetes.io/dockerconfigjson,",
		"and the kubelet brings it into the volume.")
	f.publish("secrets/asmwasm-cache", map[string]string{".dockerconfigjson": "docker/config.json"})
	seen := f.until(deployment, "InForce")
	f.Say("it was " + strings.Join(seen, ", then "))
	f.Answer(f.agent(0, "wasm", "list"))
	f.Check(slices.Contains(seen, "Pulling"), "with it, it is pulled at once")
	f.Check(strings.Contains(f.curl(), "< "+header+": "+added+"\r\n"), "the header is there")
}

func (f *filters) theTag() {
	f.Title("6. A tag that moves")
	f.run("sed 's/" + header + "/" + tagged + "/' files/example-filter.wat | wat2wasm - -o tag.wasm")
	f.push("asm-tag:latest", "tag.wasm")
	f.run("cp files/tag.yaml mesh/")
	f.eventually("the filter is in force", tagged, added)
	tr := f.load(added)
	f.run("sed 's/" + header + "/" + tagged + "/; s/" + added + "/" + updated + "/' files/example-filter.wat | wat2wasm - -o moved.wasm")
	f.push("asm-tag:latest", "moved.wasm")
	began := time.Now()
	f.eventually("the tag is looked up", tagged, updated)
	f.Say(fmt.Sprintf("(it took %.1f s)", time.Since(began).Seconds()))
	f.Check(strings.Contains(f.curl(), "< "+tagged+": "+updated+"\r\n"), "what the tag is now is in force")
	f.Check(f.end(tr).whole(), "no request has failed, and none was without the header")
}

func (f *filters) theRefused() {
	f.Title("7. Modules that no Envoy may have")
	tr := f.load(added)
	f.run("head -c 300 example-filter.wasm >corrupt.wasm")
	f.push("corrupt:v1", "corrupt.wasm")
	f.run("sed '/proxy_on_configure/s/(i32.const 1)/(loop (br 0)) &/' files/example-filter.wat | wat2wasm - -o loop.wasm")
	f.push("loop:v1", "loop.wasm")
	f.run("cp files/refused.yaml mesh/")
	refusals := []struct{ name, reason, what string }{
		{"digest", "is wanted", "another digest than the document's: refused"},
		{"corrupt", "cut off", "half a module: refused"},
		{"loop", "endless loop", "one that never ends: refused; it was another Envoy that tried it"},
	}
	for _, r := range refusals {
		// The agent tries a module again that had too little of a processor in its 30 s.
		lab.Eventually(f.T, 3*limit, r.name+" is refused", func() error { return f.failed(r.name, r.reason) })
	}
	f.Print(f.agent(0, "wasm", "list"))
	for _, r := range refusals {
		f.Check(f.failed(r.name, r.reason) == nil, r.what)
	}
	f.Check(f.end(tr).whole(), "no request has failed, and none was without the header")
	f.Check(f.ready() == nil, "the pod was ready all the time")
	f.run("rm mesh/refused.yaml")
}

func (f *filters) withoutRegistry() {
	f.Title("8. Without the registry: a restart, and an upgrade")
	f.Say("The registry is stopped.")
	f.stopRegistry()
	tr := f.load(added)
	f.Say("The agent is stopped, and started again.")
	f.slots.List[0].Stop(lab.Deadline)
	f.start(0, 1, 0)
	restart := f.end(tr)
	f.Check(restart.filtered > 0 && restart.unfiltered == 0, "what was answered has the header; the modules are in the pod's store")
	tr = f.load(added)
	f.Say("Its successor, with another Envoy, takes over.")
	f.start(1, 2, 1)
	f.slots.List[0].WaitRole(f.T, lab.RoleDraining, lab.RoleStandby)
	f.Answer(f.agent(1, "upgrade-status"))
	f.Answer(f.agent(1, "wasm", "list"))
	f.Check(f.end(tr).whole(), "no request has failed, and none was without the header")
}

func (f *filters) theStrategies() {
	f.Title("9. New filters without the registry")
	f.run("cp files/open.yaml mesh/")
	f.until(plugin+"open", "Failed")
	f.Answer(f.agent(1, "wasm", "list"))
	f.Check(f.has(header, added) == nil, "FAIL_OPEN: requests are served without that filter")
	f.run("cp files/closed.yaml mesh/")
	f.until(plugin+"closed", "Failed")
	lab.Eventually(f.T, limit, "FAIL_CLOSE refuses", f.refused)
	f.curl()
	f.Check(f.refused() == nil, "FAIL_CLOSE: they are refused (403)")
	f.Check(f.ready() == nil, "a pod that was ready stays so")
	f.run("rm mesh/open.yaml mesh/closed.yaml")
	f.becomes(header, added, "without the documents they are served again")
}

func (f *filters) theEnd() {
	f.Title("10. The end")
	tr := f.load(added)
	f.run("rm mesh/filter.yaml mesh/tag.yaml")
	f.eventually("the headers are gone", header, "")
	f.eventually("the headers are gone", tagged, "")
	tr.stop()
	f.Check(tr.now().failed == 0, "the documents are deleted: the headers are gone, and no request has failed")
}
