package main

import (
	"os"
	"strings"
)

// elsewhere says where a command line is to be run instead.
func elsewhere(args []string) string {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod = "POD"
	}
	if namespace := os.Getenv("POD_NAMESPACE"); namespace != "" {
		pod += " -n " + namespace
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo") // unreadable, it names no container
	slots, command := "istio-proxy-1, istio-proxy-2 or istio-proxy", "SLOT"
	if others := otherSlots(containerName(string(mounts))); len(others) > 0 {
		slots, command = strings.Join(others, " or "), others[0]
	}
	return "ask the pod's other slot (" + slots + "): kubectl exec " + pod + " -c " + command + " -- pilot-agent " + strings.Join(args, " ")
}

// containerName finds the name of the container in the format of /proc/self/mountinfo, since nothing else in a
// container tells it: the kubelet mounts the file of the termination message from its directory
// pods/<uid>/containers/<name>/<id>. "" is an unknown one.
func containerName(mounts string) string {
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		path := strings.Split(fields[3], "/")
		if n := len(path); n >= 5 && path[n-5] == "pods" && path[n-3] == "containers" {
			return path[n-2]
		}
	}
	return ""
}

// otherSlots are the names that the other slot of a pod can have: OpenKruise makes istio-proxy-1 and istio-proxy-2 of
// istio-proxy, the injector istio-proxy and istio-proxy-2. None are known without its own.
func otherSlots(own string) []string {
	if base, ok := strings.CutSuffix(own, "-1"); ok {
		return []string{base + "-2"}
	}
	if base, ok := strings.CutSuffix(own, "-2"); ok {
		return []string{base + "-1", base}
	}
	if own == "" {
		return nil
	}
	return []string{own + "-2"}
}
