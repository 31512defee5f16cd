package vip

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The file and its journal as other releases read them.
func TestFileIsAsReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vips.json")
	now := time.Unix(1700000000, 0)
	v, err := Open(Config{Path: path, V4: netip.MustParsePrefix("240.240.0.0/16"), Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	assign(t, v, "a.example", "b.example")
	v.Compact()
	assign(t, v, "a.example")
	for name, want := range map[string]string{
		path:                 `{"version":1,"base":"240.240.0.0/16","assigned":{"a.example":44072,"b.example":33253},"since":{"33253":1700000000,"44072":1700000000}}`,
		path + journalSuffix: `{"version":1,"base":"240.240.0.0/16","assigned":{},"freed":{"b.example":{"index":33253,"at":"2023-11-14T22:13:20Z"}}}`,
	} {
		got, err := os.ReadFile(name)
		if err != nil || !strings.HasSuffix(string(got), want) {
			t.Errorf("%s: %q, %v", filepath.Base(name), got, err)
		}
	}
	if got := string(v.Export()); got != `{"version":1,"base":"240.240.0.0/16","assigned":{"a.example":44072},"freed":{"b.example":{"index":33253,"at":"2023-11-14T22:13:20Z"}},"since":{"44072":1700000000}}` {
		t.Errorf("export: %s", got)
	}
}
