package upgrader

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
)

// execProtocol is what is spoken over the WebSocket (RFC 6455) of the subresource exec: each message begins with the number of a
// channel (k8s.io/apimachinery/pkg/util/remotecommand).
const execProtocol = "v5.channel.k8s.io"

// The channels.
const (
	channelOutput = 1
	channelErrors = 2
	channelStatus = 3
)

// executor runs the command that asks an agent, in its container.
type executor struct {
	host   *url.URL
	client *http.Client
	limit  flowcontrol.RateLimiter // of all that the API server is asked
}

// newExecutor returns one for a cluster, which asks no faster than config.RateLimiter says. It asks nothing yet.
func newExecutor(config *rest.Config) (*executor, error) {
	host, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: tls, Proxy: http.ProxyFromEnvironment, DialContext: config.Dial, Protocols: new(http.Protocols), DisableKeepAlives: true}
	transport.Protocols.SetHTTP1(true) // an upgrade of the connection is nothing that HTTP/2 has
	if config.Proxy != nil {
		transport.Proxy = config.Proxy
	}
	authorized, err := rest.HTTPWrappersForConfig(config, transport)
	if err != nil {
		return nil, err
	}
	return &executor{host, &http.Client{Transport: authorized}, config.RateLimiter}, nil
}

// ask runs `pilot-agent upgrade-status` in a slot, and reads what it prints.
func (e *executor) ask(ctx context.Context, p *rollout.Pod, slot string, into *rollout.Word) error {
	ctx, cancel := context.WithTimeout(ctx, proxiedLimit)
	defer cancel()
	if err := e.limit.Wait(ctx); err != nil {
		return err
	}
	connection, err := e.connect(ctx, p, slot)
	if err != nil {
		return err
	}
	defer connection.Close()
	stop := context.AfterFunc(ctx, func() { connection.Close() })
	defer stop()
	text, err := output(connection)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	return errors.Join(err, ctx.Err())
}

// connect starts the command.
func (e *executor) connect(ctx context.Context, p *rollout.Pod, slot string) (io.ReadWriteCloser, error) {
	query := url.Values{"container": {slot}, "stdout": {"true"}, "stderr": {"true"}, "command": {"pilot-agent", "upgrade-status", "-o", "json"}}
	at := e.host.JoinPath("api/v1/namespaces", p.Namespace, "pods", p.Name, "exec")
	at.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.StdEncoding.EncodeToString(key[:]),
		"Sec-WebSocket-Protocol": execProtocol,
	} {
		request.Header.Set(name, value)
	}
	response, err := e.client.Do(request)
	if err != nil {
		return nil, err
	}
	connection, ok := response.Body.(io.ReadWriteCloser)
	if response.StatusCode == http.StatusSwitchingProtocols && response.Header.Get("Sec-WebSocket-Protocol") == execProtocol && ok {
		return connection, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxComplaint))
	return nil, fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(text))
}

// output is what the command prints until it ends.
func output(connection io.Reader) ([]byte, error) {
	var printed, complaints []byte
	in := bufio.NewReader(connection)
	for {
		message, err := readMessage(in)
		switch {
		case err != nil:
			return nil, fmt.Errorf("before the command has ended: %w", err)
		case len(message) == 0:
		case message[0] == channelOutput:
			printed = append(printed, message[1:]...)
		case message[0] == channelErrors:
			complaints = append(complaints, message[1:]...)
		case message[0] == channelStatus:
			return printed, failure(message[1:], complaints)
		}
		if len(printed)+len(complaints) > maxWord {
			return nil, fmt.Errorf("it prints more than %d bytes", maxWord)
		}
	}
}

// failure is how a command ended that has not succeeded.
func failure(status, complaints []byte) error {
	var s metav1.Status
	if err := json.Unmarshal(status, &s); err != nil {
		return fmt.Errorf("how the command ended: %w", err)
	}
	if s.Status == metav1.StatusSuccess {
		return nil
	}
	return fmt.Errorf("%s: %s", s.Message, strings.TrimSpace(string(complaints[:min(len(complaints), maxComplaint)])))
}

const (
	// maxComplaint is how much is quoted of what says why there is no answer.
	maxComplaint = 512
	// Of a frame of a WebSocket (RFC 6455, section 5.2).
	frameFinal, frameOpcode, frameMasked, frameLength = 0x80, 0x0f, 0x80, 0x7f
	opClose, opFirstControl                           = 0x8, 0x8
	length16, length64                                = 126, 127
)

// readMessage reads the next message of a server. Pings are not answered: they come after longer than a command may take.
func readMessage(in *bufio.Reader) (message []byte, err error) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return nil, err
		}
		n := uint64(head[1] & frameLength)
		var long [8]byte
		switch n {
		case length16:
			_, err = io.ReadFull(in, long[6:])
		case length64:
			_, err = io.ReadFull(in, long[:])
		}
		if n >= length16 {
			n = binary.BigEndian.Uint64(long[:])
		}
		switch {
		case err != nil:
			return nil, err
		case head[1]&frameMasked != 0:
			return nil, errors.New("a server's frame is masked")
		case n > maxWord || uint64(len(message))+n > maxWord:
			return nil, fmt.Errorf("a message of more than %d bytes", maxWord)
		}
		part := make([]byte, n)
		if _, err := io.ReadFull(in, part); err != nil {
			return nil, err
		}
		switch op := head[0] & frameOpcode; {
		case op == opClose:
			return nil, io.EOF
		case op >= opFirstControl:
			continue
		}
		if message = append(message, part...); head[0]&frameFinal != 0 {
			return message, nil
		}
	}
}
