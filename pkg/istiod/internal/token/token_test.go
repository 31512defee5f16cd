package token

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"
)

func signed(claims string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

// TestRead: a token is for one audience or for several; what is none says why, and nothing of what it is.
func TestRead(t *testing.T) {
	for claims, audience := range map[string]Audiences{
		`{"aud":"istio-ca","sub":"s","iat":1,"exp":2}`:       {"istio-ca"},
		`{"aud":["istio-ca","b"],"sub":"s","iat":1,"exp":2}`: {"istio-ca", "b"},
	} {
		if c, err := Read(signed(claims) + "\n"); err != nil || !slices.Equal(c.Audience, audience) || c.Subject != "s" || c.Issued != 1 || c.Expires != 2 {
			t.Errorf("%s: %+v, %v", claims, c, err)
		}
	}
	for token, want := range map[string]string{
		"secret": "1 parts", "a.secret": "2 parts", "a.b.secret.d": "4 parts", "a.?secret.b": "cannot be read", signed(`{"aud":7,"sub":"secret"}`): "cannot be read",
	} {
		if c, err := Read(token); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %+v, %v, want %q", token, c, err, want)
		}
	}
}
