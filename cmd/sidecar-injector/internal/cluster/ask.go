package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// askLimit is how long a pod may take for a page.
	askLimit = 5 * time.Second
	// pageLimit bounds a page: it comes from a pod, which may be anybody's.
	pageLimit = 1 << 20
)

// Ask asks a pod for a page through the API server, which reaches every pod that kubectl does.
func (c *Cluster) Ask(ctx context.Context, pod *corev1.Pod, port int, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	base := append(workloadKind{version: "v1", resource: "pods"}.path(pod.Namespace), pod.Name+":"+strconv.Itoa(port), "proxy")
	body, err := c.client.Get().MaxRetries(0).AbsPath(append(escaped(base), path)...).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return page(body)
}

// AskDirectly asks a pod for a page at its address.
func AskDirectly(ctx context.Context, pod *corev1.Pod, port int, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port))+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := direct.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", response.Status)
	}
	return page(response.Body)
}

// direct follows nobody elsewhere, and goes by no proxy.
var direct = &http.Client{
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func page(body io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(body, pageLimit+1))
	if err == nil && len(text) > pageLimit {
		err = fmt.Errorf("its answer has more than %d bytes", pageLimit)
	}
	return text, err
}
