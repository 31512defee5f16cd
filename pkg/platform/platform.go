// Package platform asks the cloud that a machine runs in where it is: the region and the zone by which istiod
// weighs localities, and what Istio's agent tells of a platform in the node's metadata.
package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// timeout bounds all questions together: they are asked before anything starts.
	timeout = 5 * time.Second
	// maxAnswer is far more than any metadata server says.
	maxAnswer = 1 << 20

	// linkLocal is every cloud's metadata server.
	linkLocal = "http://169.254.169.254"
	// awsIPv6 is Amazon's for a machine without IPv4.
	awsIPv6 = "http://[fd00:ec2::254]"
)

// Names of the platforms, as CLOUD_PLATFORM has them.
const (
	aws   = "aws"
	azure = "azure"
	gcp   = "gcp"
)

// Info is what a cloud says of a machine. Each part may be missing.
type Info struct {
	Region, Zone string
	// Metadata has Istio's names: aws_region, azure_name, gcp_project.
	Metadata map[string]string
}

// Machine is what of the machine itself decides whom to ask, and what need not be asked.
type Machine struct {
	IPv4 bool
	// Static are the variables GCP_METADATA, GCP_QUOTA_PROJECT and GCP_ZONE.
	Static map[string]string
}

// Ask asks the metadata server of a platform. What it does not know is left out; the error says that it knows nothing.
func Ask(ctx context.Context, name string, m Machine) (Info, error) {
	base := linkLocal
	if name == aws && !m.IPv4 {
		base = awsIPv6
	}
	return ask(ctx, name, m, base)
}

func ask(ctx context.Context, name string, m Machine, base string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s := server{ctx: ctx, base: base}
	var info Info
	switch name {
	case aws:
		info = s.aws()
	case azure:
		info = s.azure()
	case gcp:
		info = s.gcp(m.Static)
	default:
		return Info{}, fmt.Errorf("no platform is called %q: want %s, %s or %s", name, aws, azure, gcp)
	}
	if info.Region == "" && len(info.Metadata) == 0 {
		return Info{}, errors.Join(fmt.Errorf("the metadata server of %s says nothing", name), s.err)
	}
	return info, nil
}

// server is a metadata server. Only the first error is kept: the rest is of the same kind.
type server struct {
	ctx     context.Context
	base    string
	headers map[string]string
	err     error
}

// get gives what is at a path, "" when there is nothing.
func (s *server) get(path string) string { return s.do(http.MethodGet, path) }

func (s *server) do(method, path string) string {
	if s.ctx.Err() != nil {
		return ""
	}
	req, err := http.NewRequestWithContext(s.ctx, method, s.base+path, nil)
	if err != nil {
		return s.fail(err)
	}
	for key, value := range s.headers {
		req.Header.Set(key, value)
	}
	// No proxy of the environment's: the address is of this link alone.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return s.fail(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	if err != nil {
		return s.fail(err)
	}
	return strings.TrimSpace(string(body))
}

func (s *server) fail(err error) string {
	if s.err == nil {
		s.err = err
	}
	return ""
}

// put adds what is known.
func put(m map[string]string, key, value string) {
	if value != "" {
		m[key] = value
	}
}
