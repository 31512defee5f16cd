package pods

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// TestIstioctl has the tool of Istio's users say of a pod what it says of one with Istio's agent: before an upgrade, and
// whichever slot serves.
func TestIstioctl(t *testing.T) {
	ns := shared.Namespace(t, "istioctl")
	applyMesh(t, ns)
	ns.Apply(t, hosts)
	p := newTwoSlots(t, ns, "nginx", podOptions{istiod: true})
	p.mustBeKnownToIstioctl(t)
	for _, image := range []string{cluster.ProxyV2, cluster.ProxyV1} {
		p.upgrade(t, image)
		p.mustBeKnownToIstioctl(t)
	}
}

// mustBeKnownToIstioctl says that what istioctl asks istiod about a pod, and what it asks the pod, is answered.
func (p *twoSlots) mustBeKnownToIstioctl(t *testing.T) {
	t.Helper()
	pod := p.name + "." + p.ns.Name
	lab.Eventually(t, podLimit, "istiod knows of one proxy, in step", func() error {
		status, err := shared.Istioctl(t.Context(), "proxy-status", "--namespace", p.ns.Name, "--verbosity", "1")
		rows := rowsOf(status, pod)
		if err == nil && (len(rows) != 1 || strings.Count(rows[0], "SYNCED") < 4 || strings.Contains(rows[0], "STALE")) {
			err = fmt.Errorf("proxy-status says:\n%s", status)
		}
		return err
	})
	for _, want := range []string{"pilot version", `ProxyInfo{ID:"` + pod + `"`} {
		if version := istioctl(t, "version", "--short=false"); !strings.Contains(version, want) {
			t.Errorf("version does not have %s:\n%s", want, version)
		}
	}
	for kind, want := range map[string]string{
		"clusters": shop, "listeners": "virtualInbound", "endpoints": "outbound|80||" + shop, "routes": "inbound|80||",
		"bootstrap": `"id": "sidecar~`, "secret": "default",
	} {
		arguments := []string{"proxy-config", kind, pod}
		if kind == "bootstrap" || kind == "listeners" {
			arguments = append(arguments, "--output", "json")
		}
		if text := istioctl(t, arguments...); !strings.Contains(text, want) {
			t.Errorf("proxy-config %s does not have %q:\n%s", kind, want, text)
		}
	}
	if text := istioctl(t, "proxy-config", "all", pod); !strings.Contains(text, shop) {
		t.Errorf("proxy-config all does not have %s:\n%s", shop, text)
	}
}

// TestIstioctlBugReport has what Istio's users send to each other when something is wrong: the proxy's part must be in it.
func TestIstioctlBugReport(t *testing.T) {
	ns := shared.Namespace(t, "bug-report")
	ns.Apply(t, join(hosts, webDeployment(t, ns, 1, underIstiod))) // it takes a proxy by itself for none
	ns.Wait(t, podLimit, "condition=Available", "deployment/web")
	dir := t.TempDir()
	out, err := shared.Istioctl(t.Context(), "bug-report", "--include", ns.Name, "--dir", filepath.Join(dir, "parts"), "--output-dir", dir, "--skip-cluster-dump", "--skip-analyze")
	if err != nil {
		t.Fatal(err)
	}
	have := sizesIn(t, filepath.Join(dir, "bug-report.tar.gz"), filepath.Join(ns.Name, podNames(t, ns)[0]))
	for _, name := range []string{"config_dump?include_eds", "clusters", "listeners", "server_info", "stats/prometheus", "memory", "certs", "istio-proxy.log"} {
		size, ok := have[name]
		if !ok || size == 0 {
			t.Errorf("%s of the pod has %d bytes (there: %v)", name, size, ok)
		}
	}
	if t.Failed() {
		t.Logf("the report has %v\n%s", have, out)
	}
}

// sizesIn are the files below a directory of an archive.
func sizesIn(t *testing.T, archive, dir string) map[string]int64 {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sizes
		} else if err != nil {
			t.Fatal(err)
		}
		if _, name, ok := strings.Cut(header.Name, dir+"/"); ok {
			sizes[name] = header.Size
		}
	}
}

func istioctl(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := shared.Istioctl(t.Context(), arguments...)
	if err != nil {
		t.Error(err)
	}
	return out
}

// rowsOf are the lines of a table that begin with name.
func rowsOf(table, name string) (rows []string) {
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, name) {
			rows = append(rows, line)
		}
	}
	return rows
}
