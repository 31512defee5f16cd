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

// asker asks agents: at their pods' addresses, or by the next way where those are out of reach.
type asker struct {
	*Upgrader
	client *http.Client
	ways   []way
	first  atomic.Int32 // of the ways, that has had an answer where those before had none
}

// way is one of asking an agent.
type way struct {
	name string
	ask  func(ctx context.Context, p *rollout.Pod, into *rollout.Word) error
}

func newAsker(u *Upgrader) *asker {
	a := &asker{Upgrader: u, client: &http.Client{
		Timeout:   directLimit,
		Transport: &http.Transport{Proxy: nil, DialContext: u.dial, DisableKeepAlives: true},
		// The agent answers itself; whoever sends us elsewhere is no agent.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	a.ways = []way{{"at its address", a.direct}, {"by way of the API server", a.byServer}}
	if u.byExec {
		a.ways = append(a.ways, way{"by exec", a.inContainer})
	}
	return a
}

// ask returns what a pod's agent says.
func (a *asker) ask(ctx context.Context, p *rollout.Pod) *rollout.Word {
	var none error
	for i := int(a.first.Load()); i < len(a.ways); i++ {
		word := new(rollout.Word)
		err := a.ways[i].ask(ctx, p, word)
		switch {
		case err == nil && none != nil:
			a.first.Store(int32(i))
			a.log.Info("agents are asked "+a.ways[i].name, "err", none)
			fallthrough
		case err == nil:
			return word
		case none == nil:
			none = fmt.Errorf("%s: %w", a.ways[i].name, err)
		default:
			none = fmt.Errorf("%w; %s: %w", none, a.ways[i].name, err)
		}
	}
	return &rollout.Word{Err: none}
}

// inContainer asks in the slot that serves, or that is to, and where that has no agent yet in the other one.
func (a *asker) inContainer(ctx context.Context, p *rollout.Pod, into *rollout.Word) error {
	working, idle := p.SlotNames()
	err := a.executor.ask(ctx, p, working, into)
	if err == nil {
		return nil
	}
	*into = rollout.Word{}
	if idleErr := a.executor.ask(ctx, p, idle, into); idleErr != nil {
		return fmt.Errorf("in %s: %w; in %s: %w", working, err, idle, idleErr)
	}
	return nil
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
