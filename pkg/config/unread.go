package config

import (
	"slices"
	"strings"
)

// othersFields are fields of ProxyConfig that are not for the agent: the injector acts on them, or
// they only say who the proxy is. proxyMetadata is read by itself.
var othersFields = [...]string{"proxyMetadata", "holdApplicationUntilProxyStarts", "image", "meshId"}

// nameUnread warns of every field of a checked ProxyConfig on which nothing acts without istiod, to
// which the node tells them all: each by itself where other fields of the same message are read, else
// the message as a whole.
func (l *loader) nameUnread(tree map[string]any, source, prefix, at string) {
	for _, key := range sortedKeys(tree) {
		path, value := at+key, tree[key]
		sub, isMap := value.(map[string]any)
		read, below := l.reads(path)
		switch {
		case read || isUnset(value):
		case below && isMap:
			l.nameUnread(sub, source, prefix, path+".")
		default:
			l.warnFilesOnce("ProxyConfig."+path, source, prefix+path)
		}
	}
}

// reads tells whether a setting has this path in ProxyConfig, and whether one has a path below it.
func (l *loader) reads(path string) (read, below bool) {
	read = slices.Contains(othersFields[:], path)
	for _, s := range l.table {
		read = read || s.proxy == path
		below = below || strings.HasPrefix(s.proxy, path+".")
	}
	return read, below
}

// isUnset tells whether a value says no more than its absence.
func isUnset(value any) bool {
	switch value := value.(type) {
	case string:
		return value == ""
	case bool:
		return !value
	case []any:
		return len(value) == 0
	case map[string]any:
		for _, member := range value {
			if !isUnset(member) {
				return false
			}
		}
		return true
	}
	return value == nil
}
