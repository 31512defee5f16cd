package istiod

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.mesh/pkg/istiod/internal/token"
)

// errNoToken says that no file of a token is there.
var errNoToken = errors.New("no token is there")

// claims reads those of the token that goes with a call, and names its file. The error has nothing of the token itself.
func (d *Dial) claims() (path string, c token.Claims, err error) {
	path, text, err := firstFile(d.Tokens)
	if err == nil && path == "" {
		err = errNoToken
	}
	if err != nil {
		return path, c, err
	}
	if c, err = token.Read(string(text)); err != nil {
		err = fmt.Errorf("%s is %w", path, err)
	}
	return path, c, err
}

// token says what the token is good for.
func (x Examination) token() (string, error) {
	path, c, err := x.Dial.claims()
	switch {
	case errors.Is(err, errNoToken) && x.Dial.certificate() != nil:
		return "none; istiod knows this pod by its certificate " + x.Dial.CertChain, nil
	case errors.Is(err, errNoToken):
		return "", fmt.Errorf("none of %s is there: mount a projected serviceAccountToken for the audience %s", strings.Join(x.Dial.Tokens, ", "), audience)
	case err != nil:
		return "", err
	}
	left := time.Until(time.Unix(c.Expires, 0)).Round(time.Second)
	detail := fmt.Sprintf("%s: of %s for %s", path, c.Subject, strings.Join(c.Audience, ", "))
	switch {
	case c.Expires != 0 && left <= 0:
		return "", fmt.Errorf("%s: it expired %v ago: the kubelet renews it in time, unless it cannot reach the API server or the clock of this node is fast", detail, -left)
	case !slices.Contains(c.Audience, audience):
		return "", warning{fmt.Errorf("%s: a default istiod takes only the audience %s", detail, audience)}
	}
	metadata := x.Node.GetMetadata().GetFields()
	subject := "system:serviceaccount:" + metadata["NAMESPACE"].GetStringValue() + ":" + metadata["SERVICE_ACCOUNT"].GetStringValue()
	if c.Subject != subject {
		return "", warning{fmt.Errorf("%s: the pod says that it is %s (POD_NAMESPACE, SERVICE_ACCOUNT), and istiod refuses who has another's token", detail, subject)}
	}
	if c.Expires == 0 {
		return detail + ", without an end", nil
	}
	return fmt.Sprintf("%s, for another %v", detail, left), nil
}
