package mesh

import "testing"

// TestLeadsTo shows each way in which a host's endpoints are found, and no more of it than a line.
func TestLeadsTo(t *testing.T) {
	r, _ := load(t, doc("name: db", "hosts: [db.example], resolution: STATIC, ports: [{number: 3306, name: tcp, protocol: TCP}], endpoints: [{address: 10.0.0.1, ports: {tcp: 3307}}, {address: 10.0.0.2}, {address: 10.0.0.3}, {address: 10.0.0.4}]")+
		doc("name: self", "hosts: [self.example], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]")+
		doc("name: elsewhere", "hosts: [else.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: other.example}]")+
		doc("name: none", "hosts: [none.example], ports: [{number: 80, name: http, protocol: HTTP}]")+
		doc("name: wild", "hosts: ['*.wild.example'], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls, protocol: TLS}]")+
		doc("name: empty", "hosts: [empty.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {a: b}}")+
		doc("name: six", "hosts: [six.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: '2001:db8::1'}]")+
		doc("name: unix", "hosts: [unix.example], addresses: [10.9.0.1], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 'unix:///run/x.sock'}]")+
		doc("name: many", "hosts: [many.example], resolution: DNS, ports: [{number: 1, name: tcp-1, protocol: TCP}, {number: 2, name: tcp-2, protocol: TCP}, {number: 3, name: tcp-3, protocol: TCP}, {number: 4, name: tcp-4, protocol: TCP}]"), testOptions())
	for host, want := range map[string]string{
		"db.example":     "3306 -> 10.0.0.1:3307, 10.0.0.2:3306, 2 more (STATIC)",
		"self.example":   "443 -> self.example:8443 (DNS)",
		"else.example":   "80 -> other.example:80 (DNS)",
		"none.example":   "80 -> the address that it is for (NONE)",
		"*.wild.example": "443 -> the name that the request has (DYNAMIC_DNS)",
		"empty.example":  "80 -> no endpoint",
		"six.example":    "80 -> [2001:db8::1]:80 (STATIC)",
		"unix.example":   "80 -> unix:///run/x.sock (STATIC)",
		"many.example":   "1 -> many.example:1 (DNS); 2 -> many.example:2 (DNS); 3 -> many.example:3 (DNS); 1 more ports",
		"other.example":  "",
		"":               "",
	} {
		if got := r.LeadsTo(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}
