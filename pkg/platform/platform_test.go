package platform

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAsk plays each cloud's metadata server, with the headers that it demands.
func TestAsk(t *testing.T) {
	for name, tc := range map[string]struct {
		platform string
		machine  Machine
		answers  map[string]string // by method, path and the header that it takes
		want     Info
	}{
		"aws": {aws, Machine{IPv4: true}, map[string]string{
			"PUT /latest/api/token X-Aws-Ec2-Metadata-Token-Ttl-Seconds:60":                    "t0ken",
			"GET /latest/meta-data/placement/region X-Aws-Ec2-Metadata-Token:t0ken":            "eu-west-1",
			"GET /latest/meta-data/placement/availability-zone X-Aws-Ec2-Metadata-Token:t0ken": "eu-west-1a\n",
			"GET /latest/meta-data/instance-id X-Aws-Ec2-Metadata-Token:t0ken":                 "i-1",
		}, Info{"eu-west-1", "eu-west-1a", map[string]string{"aws_region": "eu-west-1", "aws_availability_zone": "eu-west-1a", "aws_instance_id": "i-1"}}},
		"aws without tokens": {aws, Machine{}, map[string]string{
			"GET /latest/meta-data/placement/region": "eu-west-1",
		}, Info{"eu-west-1", "", map[string]string{"aws_region": "eu-west-1"}}},
		"azure": {azure, Machine{}, map[string]string{
			"GET /metadata/instance?api-version=2019-08-15 Metadata:True": `{"compute":{"name":"vm","location":"westeurope","zone":"2","vmId":"v","tagsList":[{"name":"a","value":"b"}]}}`,
		}, Info{"westeurope", "2", map[string]string{"azure_name": "vm", "azure_location": "westeurope", "azure_vmId": "v", "azure_a": "b"}}},
		"gcp": {gcp, Machine{}, map[string]string{
			"GET /computeMetadata/v1/project/project-id Metadata-Flavor:Google":               "p",
			"GET /computeMetadata/v1/instance/zone Metadata-Flavor:Google":                    "projects/1/zones/us-central1-f",
			"GET /computeMetadata/v1/instance/attributes/cluster-name Metadata-Flavor:Google": "c",
		}, Info{"us-central1", "us-central1-f", map[string]string{
			"gcp_project": "p", "gcp_location": "us-central1-f", "gcp_gke_cluster_name": "c",
			"gcp_gke_cluster_url": "https://container.googleapis.com/v1/projects/p/locations/us-central1-f/clusters/c",
		}}},
		"gcp by variables": {gcp, Machine{Static: map[string]string{"GCP_METADATA": "p|1|c|us-central1", "GCP_ZONE": "us-central1-f"}}, nil, Info{"us-central1", "us-central1-f", map[string]string{
			"gcp_project": "p", "gcp_project_number": "1", "gcp_gke_cluster_name": "c", "gcp_location": "us-central1", "gcp_zone": "us-central1-f",
			"gcp_gke_cluster_url": "https://container.googleapis.com/v1/projects/p/locations/us-central1/clusters/c",
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for request, answer := range tc.answers {
					parts := append(strings.Fields(request), "")
					header, value, _ := strings.Cut(parts[2], ":")
					if r.Method == parts[0] && r.URL.RequestURI() == parts[1] && (header == "" || r.Header.Get(header) == value) {
						w.Write([]byte(answer))
						return
					}
				}
				http.NotFound(w, r)
			}))
			defer server.Close()
			got, err := ask(t.Context(), tc.platform, tc.machine, server.URL)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestAskNobody: where there is no such server, or one that talks of something else, the error says so.
func TestAskNobody(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("")) }))
	defer server.Close()
	for _, name := range []string{aws, azure, gcp} {
		if _, err := ask(t.Context(), name, Machine{}, server.URL); err == nil || !strings.Contains(err.Error(), "metadata server of "+name+" says nothing") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ask(t.Context(), name, Machine{}, "http://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s, nobody there: %v", name, err)
		}
	}
	if _, err := ask(t.Context(), "ibm", Machine{}, server.URL); err == nil || !strings.Contains(err.Error(), `"ibm"`) {
		t.Errorf("an unknown platform: %v", err)
	}
}
