package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// pageTimeout bounds one request to the agent: a look-up of a name may wait for one upstream server after another.
const pageTimeout = 30 * time.Second

// Opener is [control.Client.OpenStatus].
type Opener func(ctx context.Context, method, path string) (io.ReadCloser, error)

// Page is a request for one of the running agent's pages, whose answer is JSON, and how it is shown.
type Page struct {
	Path   string
	Method string // "" is GET
	Query  url.Values
	Output Output
	// Print writes the answer as text, without all of it in memory.
	Print func(io.Writer, *json.Decoder) error
}

// Ask opens the page and prints it while it arrives.
func (p Page) Ask(ctx context.Context, open Opener, out io.Writer) error {
	if err := p.Output.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	path := p.Path
	if len(p.Query) > 0 {
		path += "?" + p.Query.Encode()
	}
	answer, err := open(ctx, cmp.Or(p.Method, http.MethodGet), path)
	if err != nil {
		return err
	}
	defer answer.Close()
	if p.Output.IsJSON() {
		_, err = io.Copy(out, answer)
	} else {
		err = p.Print(out, json.NewDecoder(answer))
	}
	if err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// Each decodes the elements of a JSON list one by one.
func Each[T any](in *json.Decoder, do func(T)) error {
	if err := Expect(in, '['); err != nil {
		return err
	}
	for in.More() {
		var v T
		if err := in.Decode(&v); err != nil {
			return err
		}
		do(v)
	}
	return Expect(in, ']')
}

// Expect reads a delimiter of JSON, and fails where it is not the one that is wanted.
func Expect(in *json.Decoder, want json.Delim) error {
	got, err := in.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%q where %q should be", fmt.Sprint(got), want)
	}
	return err
}
