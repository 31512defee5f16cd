// Package token reads what a pod's token says of itself. Nobody here checks its signature: whoever gets it does.
package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Claims are what a JSON Web Token says of itself (RFC 7519).
type Claims struct {
	Audience Audiences `json:"aud"`
	Subject  string    `json:"sub"`
	Issued   int64     `json:"iat"` // seconds since 1970
	Expires  int64     `json:"exp"` // seconds since 1970, 0: never
}

// Audiences are whom a token is for: one or a list, in JSON.
type Audiences []string

// UnmarshalJSON takes both.
func (a *Audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = Audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// Read reads the claims of a token. The error has nothing of the token itself.
func Read(token string) (c Claims, err error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return c, fmt.Errorf("no JSON Web Token: it has %d parts, want 3", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &c) != nil {
		return c, errors.New("no JSON Web Token: its claims cannot be read")
	}
	return c, nil
}
