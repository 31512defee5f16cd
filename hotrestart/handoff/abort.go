package handoff

import "strings"

// AbortCode says in a word why a side gave a hand-off up.
type AbortCode string

// Why a hand-off is given up. Other releases may know more, which read as AbortFailed.
const (
	AbortFailed   AbortCode = "failed"   // something went wrong on that side: it may come again
	AbortStopping AbortCode = "stopping" // that side was asked to stop, and will not come again
	AbortRefused  AbortCode = "refused"  // the old generation serves on after all
	AbortBroken   AbortCode = "broken"   // the other side did not keep to the protocol or its deadlines
)

// stoppingText is how the first releases say AbortStopping: their aborts have no code, and they look for
// these words in the reason.
const stoppingText = "this generation was asked to stop"

// AbortedError says that the other side gave the hand-off up, and why in its own words.
type AbortedError struct {
	Code   AbortCode
	reason string
}

func (e *AbortedError) Error() string { return "the other generation gave up: " + e.reason }

// newAbort is the head of an abort that every release understands: the code, and the text that says the same.
func newAbort(code AbortCode, reason string) abortHead {
	switch says := strings.Contains(reason, stoppingText); {
	case code == AbortStopping && reason == "":
		reason = stoppingText
	case code == AbortStopping && !says:
		reason = stoppingText + ": " + reason
	case code != AbortStopping && says: // of somebody else, whose end is passed on
		reason = strings.ReplaceAll(reason, stoppingText, "a generation was asked to stop")
	}
	return abortHead{Code: code, Reason: cleanReason(reason)}
}

// aborted is what an abort says: by its code, or by its text where the release that sent it had none.
func (h abortHead) aborted() *AbortedError {
	e := &AbortedError{AbortFailed, cleanReason(h.Reason)}
	switch {
	case h.Code == AbortStopping, h.Code == AbortRefused, h.Code == AbortBroken:
		e.Code = h.Code
	case h.Code == "" && strings.Contains(e.reason, stoppingText):
		e.Code = AbortStopping
	}
	return e
}
