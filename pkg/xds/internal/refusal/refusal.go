// Package refusal owns Envoy's words for what it refuses of a response.
package refusal

import "strings"

const (
	// blaming begins every message of Envoy's that names the resources that it refused, and
	// says that it took the others of that response (CdsApiHelper, LdsApiImpl). Any other message
	// refuses the response whole: bytes that are no message, a value against a field's rule.
	blaming = "Error adding/updating "
	// Truncated ends a message of which Envoy left out what is beyond 4,096 bytes, and so
	// perhaps names (Config::Utility::truncateGrpcStatusMessage).
	Truncated = "...(truncated)"
	// maxReason bounds what is kept of a reason: the fault comes first, then the resource's
	// whole text.
	maxReason = 512
)

// Shorten bounds what is kept of a reason, and keeps nothing of the message that it came with.
func Shorten(reason string) string {
	if len(reason) > maxReason {
		return strings.ToValidUTF8(reason[:maxReason], "") + "..."
	}
	return strings.Clone(reason)
}

// BlamedBy returns those of names that message blames, each with its reason. Envoy writes
// "<name>: <reason>", several of them parted by ", " or a line break.
func BlamedBy(message string, names []string) map[string]string {
	_, text, found := strings.Cut(message, "(s) ")
	if !found || !strings.HasPrefix(message, blaming) {
		return nil
	}
	known, longest := make(map[string]bool, len(names)), 0
	for _, name := range names {
		known[name] = true
		longest = max(longest, len(name))
	}
	blamed := make(map[string]string)
	last, begins := "", 0 // the name before, and where its reason begins
	for at := 0; at < len(text); at = after(text, at) {
		name := nameAt(text[at:min(len(text), at+longest+len(": "))], known)
		if name == "" {
			continue
		}
		if last != "" {
			blamed[last] = trim(text[begins:at])
		}
		last, begins = name, at+len(name)+len(": ")
	}
	if last != "" {
		blamed[last] = trim(text[begins:])
	}
	return blamed
}

// after returns where the next name after at may begin.
func after(text string, at int) int {
	i := strings.IndexAny(text[at:], ",\n")
	if i < 0 {
		return len(text)
	}
	at += i + 1
	if text[at-1] == ',' && at < len(text) && text[at] == ' ' {
		at++
	}
	return at
}

// nameAt returns the known name with which text begins, "" when there is none. A name may
// itself have a colon in it.
func nameAt(text string, known map[string]bool) string {
	for i := 0; ; {
		end := strings.Index(text[i:], ": ")
		if end < 0 {
			return ""
		}
		if i += end; known[text[:i]] {
			return text[:i]
		}
		i++
	}
}

func trim(reason string) string { return strings.Trim(strings.TrimSuffix(reason, Truncated), ", \n") }
