package load

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

const (
	userAgent = "understudy-load"
	// More of a body than this is not read: the loads are for small answers.
	maxBody = 1 << 20
)

// http1 is a client of HTTP/1.1, on its own sockets: net/http's transport costs twice as much for
// a connection, and repeats requests without a word.
type http1 struct {
	kept
	head []byte        // the request
	req  *http.Request // tells the parser that the answer is one to a GET
	body bytes.Buffer  // the answer's
	keep bool
}

func newHTTP1(e endpoint, keep bool) *http1 {
	u, _ := url.Parse(e.flow.Target) // was parsed when the flow was checked
	connection := ""
	if !keep {
		connection = "Connection: close\r\n"
	}
	c := &http1{
		kept: kept{endpoint: e}, keep: keep, req: &http.Request{Method: http.MethodGet},
		head: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\n%s\r\n", u.RequestURI(), u.Host, userAgent, connection),
	}
	c.exchange = c.get
	return c
}

func (c *http1) get(l *link) (last bool, err error) {
	if err := l.send(c.head); err != nil {
		return false, err
	}
	response, err := http.ReadResponse(l.r, c.req)
	if err != nil {
		return true, l.incomplete(err)
	}
	c.body.Reset()
	if _, err := c.body.ReadFrom(io.LimitReader(response.Body, maxBody)); err != nil {
		return true, l.incomplete(err)
	}
	// A longer body is not read to its end, which the next request would have to be.
	last = response.Close || !c.keep || c.body.Len() == maxBody
	return last, checkAnswer(response.Status, response.StatusCode, c.body.Bytes(), c.flow.Want)
}

// checkAnswer says what is wrong with an HTTP answer.
func checkAnswer(status string, code int, body []byte, want string) error {
	switch {
	case code >= http.StatusInternalServerError:
		return &answerError{class: Status5xx, text: fmt.Sprintf("status %s: %.100q", status, body)}
	case code != http.StatusOK:
		return wrongf("status %s: %.100q", status, body)
	case !bytes.Contains(body, []byte(want)):
		return wrongf("the body has no %q: %.100q", want, body)
	}
	return nil
}
