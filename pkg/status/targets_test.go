package status

import (
	"strings"
	"testing"
)

func TestParseScrapeTargets(t *testing.T) {
	tests := []struct {
		in   string
		want string // URLs, or what the error contains
	}{
		{"", ""}, {" \n", ""}, {"{}", ""}, {"null", ""},
		{`{"scrape":"false","port":"15020"}`, ""},
		{`{"scrape":"true"}`, "http://localhost:80/metrics"},
		{`{"scrape":true,"port":8080,"path":null}`, "http://localhost:8080/metrics"},
		{`{"scrape":"true","port":"8080","path":"p/q?x=y"}`, "http://localhost:8080/p/q?x=y"},
		{`{"scrape":"true","port":"8080","path":"//evil/x"}`, `path "//evil/x"`},
		{`{"scrape":"true","port":"1","targets":[{"port":"2"},{"port":"3","path":"/z"}]}`, "http://localhost:2/metrics http://localhost:3/z"},
		{`{"scrape":"true","port":"15090"}`, "port 15090 belongs"},
		{`{"scrape":"true","port":"015020"}`, "port 15020 belongs"},
		{`{"scrape":"true","targets":[{"port":"8080"},{"port":"15000"}]}`, "port 15000 belongs"},
		{`{"scrape":"true","port":"4242"}`, "port 4242 belongs"}, // the status port here
		{`{"scrape":"true","port":"http"}`, `port "http"`},
		{`{"scrape":"true","port":"0"}`, `port "0"`},
		{`{"scrape":"true","port":"65536"}`, `port "65536"`},
		{`{"scrape":"true","path":"%zz"}`, `path "%zz"`},
		{`{"scrape":{}}`, "want a string"},
		{`[]`, annotationsSource},
	}
	for _, tt := range tests {
		targets, err := parseScrapeTargets([]byte(tt.in), []uint16{4242})
		var urls []string
		for _, target := range targets {
			urls = append(urls, target.String())
		}
		if got := strings.Join(urls, " "); err == nil && got != tt.want {
			t.Errorf("%s: %q, want %q", tt.in, got, tt.want)
		}
		if err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), annotationsSource)) {
			t.Errorf("%s: error %v, want %q", tt.in, err, tt.want)
		}
	}
}
