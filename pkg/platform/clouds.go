package platform

import (
	"encoding/json"
	"net/http"
	"strings"
)

// aws is the Instance Metadata Service, version 2 where it is there.
func (s *server) aws() Info {
	s.headers = map[string]string{"X-aws-ec2-metadata-token-ttl-seconds": "60"}
	token := s.do(http.MethodPut, "/latest/api/token")
	s.headers = nil
	if token != "" {
		s.headers = map[string]string{"X-aws-ec2-metadata-token": token}
	}
	info := Info{Metadata: map[string]string{}}
	info.Region = s.get("/latest/meta-data/placement/region")
	info.Zone = s.get("/latest/meta-data/placement/availability-zone")
	put(info.Metadata, "aws_region", info.Region)
	put(info.Metadata, "aws_availability_zone", info.Zone)
	put(info.Metadata, "aws_instance_id", s.get("/latest/meta-data/instance-id"))
	return info
}

// azureVersion is the oldest of the service's that has all that is read here.
const azureVersion = "2019-08-15"

func (s *server) azure() Info {
	s.headers = map[string]string{"Metadata": "True"}
	var answer struct {
		Compute struct {
			Name, Location, Zone, VMID string
			TagsList                   []struct{ Name, Value string }
		}
	}
	text := s.get("/metadata/instance?api-version=" + azureVersion)
	if text == "" {
		return Info{}
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		s.fail(err)
		return Info{}
	}
	info := Info{Region: answer.Compute.Location, Zone: answer.Compute.Zone, Metadata: map[string]string{}}
	put(info.Metadata, "azure_name", answer.Compute.Name)
	put(info.Metadata, "azure_location", answer.Compute.Location)
	put(info.Metadata, "azure_vmId", answer.Compute.VMID)
	for _, tag := range answer.Compute.TagsList {
		info.Metadata["azure_"+tag.Name] = tag.Value
	}
	return info
}

// gcp is what the variables say, or the metadata server.
func (s *server) gcp(static map[string]string) Info {
	zone := static["GCP_ZONE"]
	info := Info{Metadata: staticGCP(static)}
	if len(info.Metadata) == 0 {
		s.headers = map[string]string{"Metadata-Flavor": "Google"}
		info.Metadata = s.askGCP()
	}
	if zone == "" && s.headers != nil {
		zone = lastPart(s.get("/computeMetadata/v1/instance/zone"))
	}
	if region, _, ok := cutLast(zone, "-"); ok {
		info.Region, info.Zone = region, zone
	}
	m := info.Metadata
	if m["gcp_project"] != "" && m["gcp_location"] != "" && m["gcp_gke_cluster_name"] != "" {
		m["gcp_gke_cluster_url"] = "https://container.googleapis.com/v1/projects/" + m["gcp_project"] +
			"/locations/" + m["gcp_location"] + "/clusters/" + m["gcp_gke_cluster_name"]
	}
	return info
}

// staticGCP reads GCP_METADATA: project, its number, cluster and the cluster's location.
func staticGCP(static map[string]string) map[string]string {
	text := static["GCP_METADATA"]
	if text == "" {
		return nil
	}
	m := map[string]string{}
	if parts := strings.Split(text, "|"); len(parts) == 4 {
		m["gcp_project"], m["gcp_project_number"], m["gcp_gke_cluster_name"], m["gcp_location"] = parts[0], parts[1], parts[2], parts[3]
	}
	put(m, "gcp_quota_project", static["GCP_QUOTA_PROJECT"])
	put(m, "gcp_zone", static["GCP_ZONE"])
	return m
}

func (s *server) askGCP() map[string]string {
	const instance = "/computeMetadata/v1/instance/"
	m := map[string]string{}
	put(m, "gcp_project", s.get("/computeMetadata/v1/project/project-id"))
	put(m, "gcp_project_number", s.get("/computeMetadata/v1/project/numeric-project-id"))
	location := s.get(instance + "attributes/cluster-location")
	if location == "" {
		location = lastPart(s.get(instance + "zone"))
	}
	put(m, "gcp_location", location)
	put(m, "gcp_gke_cluster_name", s.get(instance+"attributes/cluster-name"))
	put(m, "gcp_gce_instance", s.get(instance+"name"))
	put(m, "gcp_gce_instance_id", s.get(instance+"id"))
	put(m, "gcp_gce_instance_template", s.get(instance+"attributes/instance-template"))
	put(m, "gcp_gce_instance_created_by", s.get(instance+"attributes/created-by"))
	return m
}

// lastPart of "projects/1/zones/us-central1-f" is the zone.
func lastPart(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// cutLast cuts at the last separator, such as a zone into its region and a letter.
func cutLast(text, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(text, separator); i > 0 {
		return text[:i], text[i+1:], true
	}
	return text, "", false
}
