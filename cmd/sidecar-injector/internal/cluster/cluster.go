// Package cluster owns what the commands ask an API server: pods, what makes them, their namespaces and the settings that count there; and
// the two things that they do to it, a patch and an eviction.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

const (
	// answerLimit is how long the API server may take for one object: somebody waits at a terminal.
	answerLimit = 15 * time.Second
	// pageSize is how many objects of a list are asked for at once, as kubectl does.
	pageSize = 500
	// requestRate and requestBurst bound the load on an API server that serves others as well.
	requestRate, requestBurst = 50, 100
)

// Cluster is a way to an API server.
type Cluster struct {
	client *rest.RESTClient
	clock  *clock
}

// Open returns the way that a kubeconfig says; "" is the one that kubectl takes. It asks nothing yet.
func Open(kubeconfig string) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	config.QPS, config.Burst = requestRate, requestBurst
	c := &clock{now: time.Now}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return c.watch(next) })
	client, err := rest.UnversionedRESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return &Cluster{client, c}, nil
}

// get reads one object as JSON; nil if there is none.
func (c *Cluster) get(ctx context.Context, path ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	text, err := answer(c.client.Get().AbsPath(escaped(path)...).SetHeader("Accept", "application/json").Do(ctx))
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return text, err
}

// answer is what the API server has said, in an error as well.
func answer(result rest.Result) ([]byte, error) {
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

func escaped(path []string) []string {
	out := make([]string, len(path))
	for i, part := range path {
		out[i] = url.PathEscape(part)
	}
	return out
}

// selection is which objects of a list are asked for, and how much of each.
type selection struct {
	labels   string
	metadata bool // nothing but that
}

// list calls each with every object of a list; a kind that the API server does not have has none.
func (c *Cluster) list(ctx context.Context, s selection, each func(text []byte) error, path ...string) error {
	accept := "application/json"
	if s.metadata {
		accept += ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	}
	for next := ""; ; {
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []json.RawMessage `json:"items"`
		}
		request := c.client.Get().AbsPath(escaped(path)...).SetHeader("Accept", accept).Param("limit", fmt.Sprint(pageSize))
		if s.labels != "" {
			request.Param("labelSelector", s.labels)
		}
		if next != "" {
			request.Param("continue", next)
		}
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		text, err := answer(request.Do(ctx))
		cancel()
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = json.Unmarshal(text, &page)
		}
		for i := 0; i < len(page.Items) && err == nil; i++ {
			err = each(page.Items[i])
		}
		if err != nil {
			return err
		}
		if next = page.Metadata.Continue; next == "" {
			return nil
		}
	}
}

// Pod is a pod as a workload, with its namespace.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) (offline.Workload, inject.Namespace, error) {
	text, err := c.get(ctx, "api", "v1", "namespaces", namespace, "pods", name)
	if err == nil && text == nil {
		err = errors.New("there is none of that name")
	}
	var w offline.Workload
	if err == nil {
		w, err = offline.NewWorkload(text)
	}
	if err != nil {
		return offline.Workload{}, inject.Namespace{}, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	in, err := c.Namespace(ctx, namespace)
	if err != nil {
		return offline.Workload{}, inject.Namespace{}, err
	}
	return w, in, nil
}

// IsNone reports whether an error of Open says that there is no kubeconfig, and no cluster around.
func IsNone(err error) bool { return err != nil && clientcmd.IsEmptyConfig(errors.Unwrap(err)) }

// Labels are a namespace's; none if it is not there.
func (c *Cluster) Labels(ctx context.Context, namespace string) (map[string]string, error) {
	in, err := c.namespace(ctx, namespace)
	if err != nil || in == nil {
		return nil, err
	}
	return in.Labels, nil
}

// Namespace is what is known of one, which must be there.
func (c *Cluster) Namespace(ctx context.Context, name string) (inject.Namespace, error) {
	in, err := c.namespace(ctx, name)
	if err == nil && in == nil {
		err = fmt.Errorf("read namespace %s: there is none of that name", name)
	}
	if err != nil {
		return inject.Namespace{}, err
	}
	return inject.Namespace{Name: name, Labels: in.Labels, Annotations: in.Annotations}, nil
}

// namespace reads one; nil if it is not there.
func (c *Cluster) namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	text, err := c.get(ctx, "api", "v1", "namespaces", name)
	if err == nil && text == nil {
		return nil, nil
	}
	in := new(corev1.Namespace)
	if err == nil {
		err = json.Unmarshal(text, in)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return in, nil
}

// Modern reports whether every node has a kubelet as [inject.ParseKubelet] says; without nodes nothing is known, so it does not.
func (c *Cluster) Modern(ctx context.Context) (bool, error) {
	text, err := c.get(ctx, "api", "v1", "nodes")
	var nodes corev1.NodeList
	if err == nil && text != nil {
		err = json.Unmarshal(text, &nodes)
	}
	if err != nil {
		return false, fmt.Errorf("read the nodes: %w", err)
	}
	old := slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool {
		modern, _ := inject.ParseKubelet(n.Status.NodeInfo.KubeletVersion)
		return !modern
	})
	return len(nodes.Items) > 0 && !old, nil
}

// Istio calls add with what Istio's injector goes by, as JSON: the ConfigMaps of a revision ("" is of none) in its root namespace, and
// the ProxyConfigs of all namespaces. What is not there is left out.
func (c *Cluster) Istio(ctx context.Context, root, revision string, add func(text []byte) error) error {
	for _, path := range [][]string{
		{"api", "v1", "namespaces", root, "configmaps", Revisioned("istio", revision)},
		{"api", "v1", "namespaces", root, "configmaps", Revisioned("istio-sidecar-injector", revision)},
		{"apis", "networking.istio.io", "v1beta1", "proxyconfigs"},
	} {
		text, err := c.get(ctx, path...)
		if err == nil && text != nil {
			err = add(text)
		}
		if err != nil {
			return fmt.Errorf("read /%s: %w", strings.Join(path, "/"), err)
		}
	}
	return nil
}

// Revisioned is what Istio's chart calls an object in a revision; "" is that there is none.
func Revisioned(name, revision string) string {
	if revision == "" || revision == "default" {
		return name
	}
	return name + "-" + revision
}

// AddProfile reads the settings of a namespace, if it has some.
func (c *Cluster) AddProfile(ctx context.Context, profiles *offline.Profiles, namespace string) error {
	text, err := c.get(ctx, "apis", profile.Group, profile.Version, "namespaces", namespace, "sidecarprofiles", profile.Name)
	if err == nil && text != nil {
		err = profiles.Add(text)
	}
	if err != nil {
		return fmt.Errorf("read SidecarProfile %s/%s: %w", namespace, profile.Name, err)
	}
	return nil
}
