package sbom

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"
)

var update = flag.Bool("update", false, "write the goldens")

var subject = Subject{
	Name: "proxy-linux-amd64", Version: "v1.2.3", Created: time.Date(2026, 11, 28, 12, 0, 0, 0, time.FixedZone("CET", 3600)),
	Purpose: "CONTAINER", License: "Apache-2.0", SHA256: strings.Repeat("0123456789abcdef", 4), PURL: "pkg:oci/proxy@sha256%3A0123?tag=v1.2.3",
}

var components = []Component{
	{Kind: "binary", Name: "usr/local/bin/pilot-agent", Version: "v1.2.3", License: "Apache-2.0", SHA256: strings.Repeat("a1", 32)},
	{Kind: "go", Name: "github.com/miekg/dns", Version: "v1.1.73", PURL: "pkg:golang/github.com/miekg/dns@v1.1.73", License: "BSD-3-Clause", Of: []string{"usr/local/bin/pilot-agent"}},
	{Kind: "deb", Name: "iptables", Version: "1.8.9-2+b1", PURL: "pkg:deb/debian/iptables@1.8.9-2%2Bb1?arch=amd64"},
	{Kind: "file", Name: "envoy", Version: "1.40.0", CPE: "cpe:2.3:a:envoyproxy:envoy:1.40.0:*:*:*:*:*:*:*", License: "Apache-2.0", Comment: "of a wheel"},
}

// TestGolden writes the document of a small set, twice, and reads it back.
func TestGolden(t *testing.T) {
	got, err := Write(subject, components)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Write(subject, components)
	if err != nil || !bytes.Equal(got, again) {
		t.Errorf("the same set gives another document: %v", err)
	}
	golden := filepath.Join("testdata", "proxy.spdx.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("not what %s has; if this is on purpose: go test ./sbom -update:\n%s", golden, got)
	}
	var doc spdx.Document
	if err := spdxjson.ReadInto(bytes.NewReader(got), &doc); err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(&doc); err != nil {
		t.Error(err)
	}
	if len(doc.Packages) != 1+len(components) {
		t.Errorf("%d packages, want the subject and %d", len(doc.Packages), len(components))
	}
}

// TestMistakes has sets that no document can be right about.
func TestMistakes(t *testing.T) {
	for name, tc := range map[string]struct {
		components []Component
		words      string
	}{
		"twice":         {[]Component{components[2], components[2]}, "iptables 1.8.9-2+b1 is in it twice"},
		"of a stranger": {[]Component{components[1]}, "usr/local/bin/pilot-agent, which is not there"},
	} {
		if _, err := Write(subject, tc.components); err == nil || !strings.Contains(err.Error(), tc.words) || !strings.Contains(err.Error(), subject.Name) {
			t.Errorf("%s: %v: no %q", name, err, tc.words)
		}
	}
}

func TestSumSHA256(t *testing.T) {
	if got, err := SumSHA256("h1:" + strings.Repeat("A", 43) + "="); err != nil || got != strings.Repeat("0", 64) {
		t.Errorf("%q, %v", got, err)
	}
	for _, sum := range []string{"", "h1:", "h2:" + strings.Repeat("A", 43) + "=", "h1:AAAA", "h1:!"} {
		if got, err := SumSHA256(sum); err == nil {
			t.Errorf("%q: %q", sum, got)
		}
	}
}
