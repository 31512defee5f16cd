package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"understudy.mesh/pkg/control"
)

// TestRequest checks what is said of an answer, and of none.
func TestRequest(t *testing.T) {
	for _, tc := range []struct {
		name       string
		method     string // POST
		code       int
		body       string
		fails      error
		out, notes string
		err        string
	}{
		{name: "an answer", code: 200, body: "ok\n", out: "ok\n"},
		{name: "not found is no error for who asks", method: "GET", code: 404, body: "404 page not found", out: "404 page not found"},
		{name: "not found is an error for a hook", code: 404, body: "404 page not found", out: "404 page not found", err: "POST /drain: HTTP status code 404"},
		{name: "an error of the agent's", code: 500, body: "no", out: "no", err: "POST /drain: HTTP status code 500"},
		{name: "a standby", fails: control.ErrStandby,
			notes: "pilot-agent: POST /drain was not sent: this container's agent stands by, the pod's other container serves\n"},
		{name: "no agent", fails: errors.New("ask the agent for /role: HTTP status code 500: oops"),
			err: "send POST /drain: ask the agent for /role: HTTP status code 500: oops"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := control.Request{Port: 15020, Method: cmp.Or(tc.method, "POST"), Path: "/drain", Body: "x"}
			var out, notes bytes.Buffer
			var sent []control.Request
			err := request(t.Context(), func(_ context.Context, r control.Request) (*http.Response, error) {
				sent = append(sent, r)
				return &http.Response{StatusCode: tc.code, Body: io.NopCloser(strings.NewReader(tc.body))}, tc.fails
			}, r, &out, &notes)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || err.Error() != tc.err) {
				t.Errorf("error %v\n want %s", err, tc.err)
			}
			if out.String() != tc.out || notes.String() != tc.notes {
				t.Errorf("out %q, notes %q; want %q and %q", &out, &notes, tc.out, tc.notes)
			}
			if len(sent) != 1 || sent[0] != r {
				t.Errorf("sent %v, want %v", sent, r)
			}
		})
	}
}
