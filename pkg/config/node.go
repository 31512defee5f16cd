package config

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

const (
	// istioVersion is the release of Istio whose agent and Envoy these are like: what istiod is
	// told where nobody says another. EnvoyFilters select proxies by it, and istiod generates
	// by it, so it is never the agent's own version.
	istioVersion = "1.32.0"
	// tokenFile is the token by which istiod knows the pod.
	tokenFile = "./var/run/secrets/tokens/istio-token"
)

// deriveNode builds the identity that Envoy sends to the control plane, by the rules of
// Istio's agent (pilot/cmd/pilot-agent, pkg/bootstrap).
func (l *loader) deriveNode(c *Config) {
	m := l.nodeMetadata(c)
	labels, _ := m["LABELS"].(map[string]any)
	c.Node = Node{
		ID: strings.Join([]string{
			string(c.Role), c.NodeIPs[0].String(), c.PodName + "." + c.PodNamespace, c.Domain,
		}, "~"),
		Cluster:  l.clusterName(c, labels, m),
		Metadata: m,
	}
	parts := append(strings.Split(locality(labels), "/"), "", "")
	c.Node.Region, c.Node.Zone, c.Node.SubZone = parts[0], parts[1], parts[2]
	if parts[0] == "" {
		c.Node.Region, c.Node.Zone = l.platform.Region, l.platform.Zone
	}
}

// clusterName is the service cluster where one was set, else what tracingServiceName asks
// for: the name by which the pod's labels call its workload, with its namespace or without.
func (l *loader) clusterName(c *Config, labels, metadata map[string]any) string {
	workload, _ := metadata["WORKLOAD_NAME"].(string)
	given := c.ServiceCluster
	if l.tracingName() {
		canonical := cmp.Or(firstLabel(labels, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"), workload, defaultServiceCluster)
		given = ""
		switch c.TracingServiceName {
		case "CANONICAL_NAME_ONLY":
			given = canonical
		case "CANONICAL_NAME_AND_NAMESPACE":
			return canonical + "." + c.PodNamespace
		}
	}
	if given != "" && given != defaultServiceCluster {
		return given
	}
	app := firstLabel(labels, "app", "app.kubernetes.io/name", "service.istio.io/canonical-name")
	return cmp.Or(app, workload, defaultServiceCluster) + "." + c.PodNamespace
}

// tracingName tells whether tracingServiceName, not serviceCluster, says what the cluster is
// called: ProxyConfig has one of the two, the last that was set, and a flag wins.
func (l *loader) tracingName() bool {
	return l.proxy["tracingServiceName"] != nil && l.values["serviceCluster"].source != sourceFlag
}

// firstLabel is the value of the first label that is there.
func firstLabel(labels map[string]any, names ...string) string {
	for _, name := range names {
		if value, _ := labels[name].(string); value != "" {
			return value
		}
	}
	return ""
}

// locality is region/zone/subzone by the pod's labels; they may write dots, as a label's
// value cannot hold a slash.
func locality(labels map[string]any) string {
	text := firstLabel(labels, "topology.istio.io/locality", localityLabel)
	if !strings.Contains(text, "/") {
		text = strings.ReplaceAll(text, ".", "/")
	}
	return text
}

// adoptToken takes namespace and service account from the pod's token where no variable says
// them: istiod refuses a node whose own differ from its token's.
func (l *loader) adoptToken(c *Config) {
	namespace, account, ok := l.tokenIdentity()
	if !ok || c.ConfigDir != "" {
		return
	}
	for _, s := range []struct {
		name  string
		field *string
		token string
	}{{"podNamespace", &c.PodNamespace, namespace}, {"serviceAccount", &c.ServiceAccount, account}} {
		switch {
		case !l.isSet(s.name):
			*s.field = s.token
			l.derived(s.name, s.token)
		case *s.field != s.token:
			source, key := l.origin(s.name)
			l.warn(source, key, "istiod refuses this node: it is "+shown(*s.field)+" here and "+shown(s.token)+" in the token")
		}
	}
}

// tokenIdentity reads whose token it is. Nothing is verified: that is istiod's part.
func (l *loader) tokenIdentity() (namespace, account string, ok bool) {
	data, err := l.src.ReadFile(tokenFile)
	parts := strings.Split(strings.TrimSpace(string(data)), ".")
	if err != nil || len(parts) != 3 {
		return "", "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Subject string `json:"sub"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return "", "", false
	}
	subject, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	return strings.Cut(subject, ":")
}

const (
	gcp = "gcp"
	// gcpMetadataVariable says what its metadata server would.
	gcpMetadataVariable = "GCP_METADATA"
)

func parseCloud(text string) (string, error) {
	name := strings.ToLower(text)
	if !slices.Contains([]string{"aws", "azure", gcp, "none"}, name) {
		return "", errors.New("want aws, azure, gcp or none")
	}
	return name, nil
}

// askPlatform asks the cloud that a variable names, for istiod. That takes seconds where there is no
// such cloud, so that nobody is asked on suspicion, as Istio's agent does.
func (l *loader) askPlatform(c *Config) {
	name, key := c.CloudPlatform, "CLOUD_PLATFORM"
	static := map[string]string{}
	for _, s := range []struct{ name, variable string }{{"gcpMetadata", gcpMetadataVariable}, {"gcpQuotaProject", "GCP_QUOTA_PROJECT"}, {"gcpZone", "GCP_ZONE"}} {
		if value, _ := l.values[s.name].value.(string); value != "" {
			static[s.variable] = value
		}
	}
	if name == "" && static[gcpMetadataVariable] != "" {
		name, key = gcp, gcpMetadataVariable
	}
	if name == "" || name == "none" || c.ConfigDir != "" || l.src.Platform == nil {
		return
	}
	var err error
	if l.platform, err = l.src.Platform(name, c.IPv4, static); err != nil {
		l.warn(sourceEnv, key, "no locality and no PLATFORM_METADATA of it: "+err.Error())
	}
}
