package hosts

import (
	"slices"
	"testing"

	"understudy.mesh/dnsproxy/table"
)

// FuzzHosts: whatever another release hands over, what is taken of it can be told again, the same.
func FuzzHosts(f *testing.F) {
	f.Add([]byte(`[{"name":"\"\\\u00fc","addrs":["fe80::1%\"","1.2.3.4","::ffff:1.2.3.4%0",""]}]`))
	f.Add([]byte(`[{"name":"a.example","addrs":["240.240.0.1","::1"],"vip":true},{"name":"b.example","forwarded":true}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := Unmarshal(b)
		if err != nil {
			return
		}
		again, err := Unmarshal(Marshal(hosts))
		if err != nil || !slices.EqualFunc(hosts, again, func(a, b table.Host) bool {
			return a.Name == b.Name && slices.Equal(a.Addrs, b.Addrs) && a.VIP == b.VIP && a.Forwarded == b.Forwarded
		}) {
			t.Errorf("%v: %v, %v", hosts, again, err)
		}
	})
}
