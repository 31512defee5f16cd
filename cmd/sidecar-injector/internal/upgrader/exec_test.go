package upgrader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/contract"
)

// frame is one of a server: with its first byte (final, operation), and a message of a channel.
func frame(first byte, message string) string {
	var b bytes.Buffer
	b.WriteByte(first)
	switch n := len(message); {
	case n < length16:
		b.WriteByte(byte(n))
	case n < 1<<16:
		b.WriteByte(length16)
		_ = binary.Write(&b, binary.BigEndian, uint16(n))
	default:
		b.WriteByte(length64)
		_ = binary.Write(&b, binary.BigEndian, uint64(n))
	}
	return b.String() + message
}

const (
	binaryFrame, pingFrame, closeFrame = 0x82, 0x89, 0x88
	succeeded                          = "\x03" + `{"status":"Success"}`
	ended1                             = "\x03" + `{"status":"Failure","message":"command terminated with exit code 1"}`
	serves                             = `{"handoffDir": "/d", "generations": [{"role": "serving", "sidecarSetVersion": "1"}]}`
)

// TestAskByExec: where neither a pod's address nor the API server's way leads to an agent, its container is asked, if that is wanted.
func TestAskByExec(t *testing.T) {
	long := strings.Repeat(" ", 70_000)
	for name, tc := range map[string]struct {
		slots map[string]string // what is sent from each; "": the answer is 403
		off   bool
		want  string // of the error; "" if there is an answer
	}{
		"the one that serves": {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x01"+serves) + frame(binaryFrame, succeeded)}},
		"in parts": {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "") + frame(0x02, "\x01"+serves[:9]) + frame(pingFrame, "?") + frame(0x80, serves[9:]) +
			frame(binaryFrame, "\x02a warning") + frame(binaryFrame, "\x01"+long) + frame(binaryFrame, "\x01"+long[:300]) + frame(binaryFrame, succeeded)}},
		"the other one": {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x02no agent\n") + frame(binaryFrame, ended1),
			contract.SecondContainer: frame(binaryFrame, "\x01"+serves) + frame(binaryFrame, succeeded)}},
		"neither": {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x02no agent\n") + frame(binaryFrame, ended1)},
			want: "by exec: in istio-proxy: command terminated with exit code 1: no agent; in istio-proxy-2: 403 Forbidden: not you"},
		"too much": {slots: map[string]string{contract.ProxyContainer: strings.Repeat(frame(binaryFrame, "\x01"+long), 20)}, want: "it prints more than 1048576 bytes"},
		"a message without an end": {slots: map[string]string{contract.ProxyContainer: strings.Repeat(frame(0x02, long), 20)},
			want: "a message of more than 1048576 bytes"},
		"a length that lies":         {slots: map[string]string{contract.ProxyContainer: "\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"}, want: "a message of more than 1048576 bytes"},
		"a masked frame":             {slots: map[string]string{contract.ProxyContainer: "\x82\x81abcde"}, want: "a server's frame is masked"},
		"it is cut off":              {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x01"+serves)}, want: "before the command has ended: EOF"},
		"it is closed":               {slots: map[string]string{contract.ProxyContainer: frame(closeFrame, "\x03\xe8")}, want: "before the command has ended: EOF"},
		"no status":                  {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x03?")}, want: "how the command ended: invalid character"},
		"something else was printed": {slots: map[string]string{contract.ProxyContainer: frame(binaryFrame, "\x01what?") + frame(binaryFrame, succeeded)}, want: "invalid character 'w'"},
		"not wanted":                 {off: true, want: "the server is currently unable to handle the request"},
	} {
		execs := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/shop/pods/pod-1/exec") {
				http.Error(w, "no way", http.StatusServiceUnavailable)
				return
			}
			execs++
			sent := tc.slots[r.URL.Query().Get("container")]
			if sent == "" || r.Header.Get("Authorization") != "Bearer secret" || fmt.Sprint(r.URL.Query()["command"]) != "[pilot-agent upgrade-status -o json]" {
				http.Error(w, "not you", http.StatusForbidden)
				return
			}
			connection, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer connection.Close()
			fmt.Fprintf(connection, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: %s\r\n\r\n%s", r.Header.Get("Sec-WebSocket-Protocol"), sent)
		}))
		u, err := New(&rest.Config{Host: server.URL, BearerToken: "secret"}, "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if !tc.off {
			u = u.ByExec()
		}
		a := newAsker(u)
		pod := rollout.View(newPod(1))
		pod.StatusPort = 1 // where nobody listens
		word := a.ask(t.Context(), pod)
		switch {
		case tc.want == "":
			if word.Err != nil || len(word.Generations) != 1 || word.Generations[0].Version != "1" {
				t.Errorf("%s: %+v", name, word)
			}
			before := execs
			if word := a.ask(t.Context(), pod); word.Err != nil || execs == before || a.first.Load() != 2 {
				t.Errorf("%s: asked again: %+v", name, word)
			}
		case word.Err == nil || !strings.Contains(word.Err.Error(), tc.want) || !strings.Contains(word.Err.Error(), "by way of the API server: "):
			t.Errorf("%s: %v, want %q", name, word.Err, tc.want)
		}
		if tc.off && execs > 0 {
			t.Errorf("%s: it was asked by exec", name)
		}
		server.Close()
	}
}
