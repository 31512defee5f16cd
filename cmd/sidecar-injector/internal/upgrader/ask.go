package upgrader

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/contract"
)

const (
	// directLimit is how long an agent may take that is asked at the pod's address, proxiedLimit by way of the API server.
	directLimit, proxiedLimit = 2 * time.Second, 10 * time.Second
	// maxWord is more than an agent says of the few generations of a pod.
	maxWord = 1 << 20
)

// asker asks agents: at their pods' addresses, or by way of the API server where those are out of reach.
type asker struct {
	*Upgrader
	client  *http.Client
	proxied atomic.Bool // an address was out of reach where the API server had an answer
}

func newAsker(u *Upgrader) *asker {
	return &asker{Upgrader: u, client: &http.Client{
		Timeout:   directLimit,
		Transport: &http.Transport{Proxy: nil, DialContext: (&net.Dialer{Timeout: directLimit}).DialContext, DisableKeepAlives: true},
		// The agent answers itself; whoever sends us elsewhere is no agent.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ask returns what a pod's agent says.
func (a *asker) ask(ctx context.Context, p *rollout.Pod) *rollout.Word {
	w := new(rollout.Word)
	if !a.proxied.Load() {
		err := a.direct(ctx, p, w)
		if err == nil {
			return w
		}
		if proxiedErr := a.byServer(ctx, p, w); proxiedErr != nil {
			w.Err = fmt.Errorf("%w; by way of the API server: %w", err, proxiedErr)
			return w
		}
		a.proxied.Store(true)
		a.log.Info("agents are asked by way of the API server", "err", err)
		return w
	}
	w.Err = a.byServer(ctx, p, w)
	return w
}

func (a *asker) direct(ctx context.Context, p *rollout.Pod, into *rollout.Word) error {
	url := "http://" + net.JoinHostPort(p.IP, strconv.Itoa(p.StatusPort)) + contract.UpgradePath
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxWord))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	return err
}

// byServer asks by the subresource proxy of the pod.
func (a *asker) byServer(ctx context.Context, p *rollout.Pod, into *rollout.Word) error {
	ctx, cancel := context.WithTimeout(ctx, proxiedLimit)
	defer cancel()
	stream, err := a.pods.Get().Namespace(p.Namespace).Resource("pods").Name(p.Name+":"+strconv.Itoa(p.StatusPort)).SubResource("proxy").
		Suffix(contract.UpgradePath).SetHeader("Accept", "application/json").Stream(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	text, err := io.ReadAll(io.LimitReader(stream, maxWord))
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	return err
}
