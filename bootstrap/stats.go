package bootstrap

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// StatsMatcher selects statistics by name, besides those that are always kept
// (ProxyConfig.proxyStatsMatcher and the annotations sidecar.istio.io/statsInclusion*).
// Whatever no rule selects is not kept, which is most of Envoy's memory for statistics.
type StatsMatcher struct {
	Prefixes, Suffixes []string
	// Regexps are RE2 and match the whole name.
	Regexps []string
}

// tag is a rule that moves a part of a statistic's name into a Prometheus label. The
// first group of the expression is cut out of the name, the second is the value.
type tag struct{ name, regex string }

// istiodTags are Istio's rules for the resources of its own control plane, whose clusters and
// HTTP connection managers end their names with ";". extra stand where Istio has them.
func istiodTags(extra []tag) []tag {
	return slices.Concat([]tag{
		{"cluster_name", `^cluster(\.(.+);)`},
		{"http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)`},
		{"thread_name", `^server(\.(.+))\.watchdog`},
		{"tcp_prefix", `^tcp\.((.*?)\.)\w+?$`},
		{"response_code", `_rq(_(\d{3}))$`},
		{"response_code_class", `_rq(_(\dxx))$`},
		{"http_conn_manager_listener_prefix", `^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
		{"listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
		{"mongo_prefix", `^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$`},
	}, extra, commonTags())
}

// plainTags are Istio's rules from before it marked where a name ends: nothing here does.
func plainTags(extra []tag) []tag {
	return slices.Concat([]tag{
		{"cluster_name", `^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)`},
		{"tcp_prefix", `^tcp\.((.*?)\.)\w+?$`},
		{"response_code", `_rq(_(\d{3}))$`},
		{"response_code_class", `_rq(_(\dxx))$`},
		{"http_conn_manager_listener_prefix", `^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
		{"http_conn_manager_prefix", `^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
		{"listener_address", `^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)`},
		{"mongo_prefix", `^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$`},
	}, commonTags(), extra)
}

// commonTags are Istio's rules whatever the control plane. Dashboards and alerts are written
// against the metric names and labels that they all produce, so they are a fact and not a choice.
func commonTags() []tag {
	return []tag{
		{"cache", `(cache\.(.+?)\.)`},
		{"component", `(component\.(.+?)\.)`},
		{"tag", `(tag\.(.+?);\.)`},
		{"wasm_filter", `(wasm_filter\.(.+?)\.)`},
		{"authz_enforce_result", `rbac(\.(allowed|denied))`},
		{"authz_dry_run_action", `(\.istio_dry_run_(allow|deny)_)`},
		{"authz_dry_run_result", `(\.shadow_(allowed|denied))`},
	}
}

func statsConfig(c Config) (*metricsv3.StatsConfig, error) {
	var extra []tag
	for _, name := range c.ExtraStatTags {
		extra = append(extra, tag{name, `(` + regexp.QuoteMeta(name) + `=\.=(.*?);\.;)`})
	}
	rules := plainTags(extra)
	if c.Istiod != nil {
		rules = istiodTags(extra)
	}
	var tags []*metricsv3.TagSpecifier
	for _, t := range rules {
		tags = append(tags, &metricsv3.TagSpecifier{TagName: t.name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: t.regex}})
	}
	patterns, err := inclusions(c)
	if err != nil {
		return nil, err
	}
	return &metricsv3.StatsConfig{
		UseAllDefaultTags:       wrapperspb.Bool(false),
		StatsTags:               tags,
		HistogramBucketSettings: histograms(c.HistogramBuckets),
		StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{
			InclusionList: &matcherv3.ListStringMatcher{Patterns: patterns},
		}},
	}, nil
}

func histograms(buckets map[string][]float64) (all []*metricsv3.HistogramBucketSettings) {
	for _, prefix := range slices.Sorted(maps.Keys(buckets)) {
		all = append(all, &metricsv3.HistogramBucketSettings{
			Match:   &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}},
			Buckets: buckets[prefix],
		})
	}
	return all
}

// setStatsTimes sets how often statistics are sent and dropped where somebody says it.
func setStatsTimes(b *bootstrapv3.Bootstrap, c Config) {
	if c.StatsFlushInterval != 0 {
		b.StatsFlushInterval = durationpb.New(c.StatsFlushInterval)
	}
	if c.StatsEvictionInterval != 0 {
		b.StatsEviction = &bootstrapv3.Bootstrap_StatsEvictionInterval{StatsEvictionInterval: durationpb.New(c.StatsEvictionInterval)}
	}
}

// inclusions is Istio's list. The agent's own readiness reads cluster_manager,
// listener_manager and server from it.
func inclusions(c Config) ([]*matcherv3.StringMatcher, error) {
	prefixes := append([]string{
		"reporter=", "cluster_manager", "listener_manager", "server", "cluster." + xdsClusterName, "wasm", "component", "istio",
	}, c.StatsMatcher.Prefixes...)
	if c.Istiod.metadataDiscovery() {
		prefixes = append(prefixes, "workload_discovery")
	}
	suffixes := append([]string{"rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied"}, c.StatsMatcher.Suffixes...)
	if c.ConnectionStats {
		suffixes = append(suffixes, "downstream_cx_active")
	}
	regexps := append([]string{`vhost\..*\.route\..*`}, c.StatsMatcher.Regexps...)

	var patterns []*matcherv3.StringMatcher
	var errs []error
	for _, p := range prefixes {
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	for _, s := range suffixes {
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}})
	}
	for _, r := range regexps {
		// Go's syntax is RE2's, as Envoy's is here.
		if _, err := regexp.Compile(r); err != nil {
			errs = append(errs, fmt.Errorf("StatsMatcher.Regexps %q: want an RE2 expression: %w", r, err))
		}
		patterns = append(patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: r},
		}})
	}
	// Envoy refuses an empty prefix or suffix, which would match every name.
	for _, s := range append(prefixes, suffixes...) {
		if s == "" {
			errs = append(errs, errors.New(`StatsMatcher holds an empty prefix or suffix: to keep every statistic use the regexp ".*"`))
		}
	}
	return patterns, errors.Join(errs...)
}
