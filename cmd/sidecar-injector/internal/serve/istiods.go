package serve

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// versionPort and versionPath are where every istiod says its release, as its Service has them.
	versionPort, versionPath = "15014", "/version"
	// askEvery is how often it is asked, and knownFor how long an answer counts: while istiods are replaced, one Service leads to
	// old and new ones, and who is asked is chance.
	askEvery, knownFor = 30 * time.Second, 10 * time.Minute
	// askLimit is how long an answer may take, versionLimit how many bytes of it are read.
	askLimit, versionLimit = 5 * time.Second, 256
)

// istiods knows the releases of the istiods at the discovery addresses of settings. It asks istiod itself, which takes no right in
// the cluster, and finds each revision at its own address. An istiod that does not answer is not known.
type istiods struct {
	addresses func() []string
	ask       func(ctx context.Context, host string) (string, error)
	now       func() time.Time
	log       *slog.Logger

	mu   sync.Mutex
	seen map[string]map[release]time.Time // by address: each release, and when it was last seen
}

func newIstiods(addresses func() []string, log *slog.Logger) *istiods {
	// Without kept connections each question may find another istiod of the Service.
	client := &http.Client{Timeout: askLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	return &istiods{
		addresses: addresses, now: time.Now, log: log, seen: make(map[string]map[release]time.Time),
		ask: func(ctx context.Context, host string) (string, error) {
			return askVersion(ctx, client, "http://"+net.JoinHostPort(host, versionPort)+versionPath)
		},
	}
}

// run goes on until ctx ends. wake asks for a look before its time.
func (i *istiods) run(ctx context.Context, wake <-chan struct{}) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		i.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// look asks at every address once.
func (i *istiods) look(ctx context.Context) {
	var group sync.WaitGroup
	for _, address := range i.addresses() {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			continue // the agent cannot use it either, and says so
		}
		group.Go(func() {
			text, err := i.ask(ctx, host)
			var found release
			if err == nil {
				found, err = parseRelease(text)
			}
			if err != nil {
				i.log.Debug("the release of istiod is not known", "address", address, "err", err)
				return
			}
			i.note(address, found)
		})
	}
	group.Wait()
}

func (i *istiods) note(address string, found release) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seen[address] == nil {
		i.seen[address] = make(map[release]time.Time)
	}
	if _, known := i.seen[address][found]; !known {
		i.log.Info("istiod", "address", address, "release", found)
	}
	i.seen[address][found] = i.now()
}

// oldest is the oldest release that was seen at an address lately; "" if none was.
func (i *istiods) oldest(address string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var least *release
	for r, at := range i.seen[address] {
		if i.now().Sub(at) > knownFor {
			delete(i.seen[address], r)
		} else if least == nil || r.compare(*least) < 0 {
			least = &r
		}
	}
	if least == nil {
		return ""
	}
	return least.String()
}

// release is one of Istio's.
type release struct {
	major, minor, patch int // patch is negative if it was not said
}

var istioRelease = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4})(?:$|[-+.\s])|$|[-+\s])`)

// parseRelease reads what an istiod says: 1.28.1-0123456-Clean.
func parseRelease(text string) (release, error) {
	found := istioRelease.FindStringSubmatch(text)
	if found == nil {
		return release{}, fmt.Errorf("%.64q: want a release, such as 1.28.1", text)
	}
	number := func(digits string) int {
		n, err := strconv.Atoi(digits)
		if err != nil {
			return -1 // none
		}
		return n
	}
	return release{number(found[1]), number(found[2]), number(found[3])}, nil
}

func (r release) compare(other release) int {
	return cmp.Or(cmp.Compare(r.major, other.major), cmp.Compare(r.minor, other.minor), cmp.Compare(r.patch, other.patch))
}

func (r release) String() string {
	text := fmt.Sprintf("%d.%d", r.major, r.minor)
	if r.patch >= 0 {
		text += "." + strconv.Itoa(r.patch)
	}
	return text
}

func askVersion(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, versionLimit))
	return strings.TrimSpace(string(text)), err
}

// discoveryAddresses are where the settings that are in force look for an istiod, without doubles.
func (p *profiles) discoveryAddresses() []string {
	p.mu.Lock()
	places := []string{""}
	for namespace, h := range p.held {
		if h.spec != nil && (h.spec.ControlPlane != nil || h.spec.Proxy != nil && h.spec.Proxy.Config != nil) {
			places = append(places, namespace)
		}
	}
	p.mu.Unlock()
	var found []string
	for _, namespace := range places {
		if base, err := p.base(namespace); err == nil {
			found = append(found, *base.Resolve().ControlPlane.DiscoveryAddress)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}
