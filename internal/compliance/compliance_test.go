package compliance

import (
	"crypto/tls"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, name := range []string{"", "fips-140-2", "fips-140-3", "pqc"} {
		if p, err := Parse(name); err != nil || string(p) != name {
			t.Errorf("%q is %q, %v", name, p, err)
		}
	}
	if _, err := Parse("FIPS"); err == nil || err.Error() != "want fips-140-2, fips-140-3 or pqc, or nothing" {
		t.Errorf("%v", err)
	}
}

// TestHandshake: a connection uses what the policy allows, and there is none to a server that has nothing of it.
func TestHandshake(t *testing.T) {
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	const chacha = tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
	for _, tc := range []struct {
		policy  Policy
		server  *tls.Config
		version uint16 // 0: no connection
		curve   tls.CurveID
	}{
		{"", &tls.Config{}, tls.VersionTLS13, tls.X25519MLKEM768},
		{FIPS2, &tls.Config{}, tls.VersionTLS12, tls.CurveP256},
		{FIPS2, &tls.Config{MinVersion: tls.VersionTLS13}, 0, 0},
		{FIPS2, &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, 0, 0},
		{FIPS2, &tls.Config{CipherSuites: []uint16{chacha}}, 0, 0},
		{FIPS3, &tls.Config{}, tls.VersionTLS13, tls.CurveP256},
		{FIPS3, &tls.Config{MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP384}}, tls.VersionTLS12, tls.CurveP384},
		{FIPS3, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, 0, 0},
		{FIPS3, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{chacha}}, 0, 0},
		{PQC, &tls.Config{}, tls.VersionTLS13, tls.X25519MLKEM768},
		{PQC, &tls.Config{MaxVersion: tls.VersionTLS12}, 0, 0},
		{PQC, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}, 0, 0},
	} {
		client := &tls.Config{InsecureSkipVerify: true}
		tc.policy.Restrict(client)
		tc.server.Certificates = certified.TLS.Certificates
		state, err := shakeHands(client, tc.server)
		if (err == nil) != (tc.version != 0) || err == nil && (state.Version != tc.version || state.CurveID != tc.curve) {
			t.Errorf("%q with %v: %v, %v, %v; want %v, %v", tc.policy, tc.server, tls.VersionName(state.Version), state.CurveID, err, tls.VersionName(tc.version), tc.curve)
		}
	}
}

func shakeHands(client, server *tls.Config) (tls.ConnectionState, error) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		_ = tls.Server(theirs, server).Handshake()
		theirs.Close()
	}()
	conn := tls.Client(ours, client)
	err := conn.Handshake()
	return conn.ConnectionState(), err
}

// TestBuild: a policy of FIPS is kept by a build with a frozen module that is in force, and by no other.
func TestBuild(t *testing.T) {
	for _, tc := range []struct {
		policy  Policy
		version string
		enabled bool
		want    string // "": no error
	}{
		{"", "latest", false, ""},
		{PQC, "latest", false, ""},
		{FIPS2, "latest", false, "make build-fips"},
		{FIPS3, "latest", true, "make build-fips"}, // GODEBUG=fips140=on
		{FIPS3, "v1.0.0", false, "take fips140=off out of GODEBUG"},
		{FIPS2, "v1.0.0", true, ""},
		{FIPS3, "v1.0.0", true, ""},
	} {
		err := tc.policy.checkModule(tc.version, tc.enabled)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q with %s, %v: %v, want %q", tc.policy, tc.version, tc.enabled, err, tc.want)
		}
	}
}

// frozen says that this test runs in a build with a FIPS 140 module.
const frozen = "UNDERSTUDY_TEST_FIPS_BUILD"

// TestBuildFIPS: what GOFIPS140=certified builds, as `make build-fips` does, may serve under every policy, and its module has all that
// the policies leave.
func TestBuildFIPS(t *testing.T) {
	if os.Getenv(frozen) != "" {
		for _, p := range []Policy{FIPS2, FIPS3, PQC} {
			if err := p.CheckBuild(); err != nil {
				t.Errorf("%q: %v", p, err)
			}
		}
		return
	}
	cmd := exec.Command("go", "test", "-count=1", "-run", "^(TestBuildFIPS|TestHandshake)$", "-v", ".")
	cmd.Env = append(os.Environ(), "GOFIPS140=certified", frozen+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), "--- PASS") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestEnvoyEnviron(t *testing.T) {
	for policy, want := range map[Policy]int{"": 0, PQC: 0, FIPS2: 1, FIPS3: 1} {
		if got := policy.EnvoyEnviron(); len(got) != want || slices.ContainsFunc(got, func(v string) bool { return !strings.HasPrefix(v, "GRPC_SSL_CIPHER_SUITES=ECDHE-") }) {
			t.Errorf("%q: %q", policy, got)
		}
	}
}
