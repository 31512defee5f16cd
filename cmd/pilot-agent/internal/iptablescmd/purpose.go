package iptablescmd

// SettingOf returns the setting that makes a rule of this purpose, "" if it is unknown.
func SettingOf(purpose string) string { return purposeSettings()[purpose] }

func purposeSettings() map[string]string {
	return map[string]string{
		"excluded outbound port":                   "--istio-local-outbound-ports-exclude",
		"excluded destination":                     "--istio-service-exclude-cidr",
		"destination":                              "--istio-service-cidr",
		"every other destination":                  "--istio-service-cidr",
		"outbound port":                            "--istio-outbound-ports",
		"inbound port":                             "--istio-inbound-ports",
		"every other inbound port":                 "--istio-inbound-ports",
		"excluded inbound port":                    "--istio-local-exclude-ports",
		"excluded interface":                       "--istio-exclude-interfaces",
		"virtual machine's traffic is not inbound": "--kube-virt-interfaces",
		"from a virtual machine":                   "--kube-virt-interfaces",
		"from the proxy":                           "--proxy-uid, --proxy-gid, --proxy-mark",
		"mesh tunnel":                              "--inbound-tunnel-port",
		"excluded owner group":                     "$ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
		"owner group not included":                 "$ISTIO_OUTBOUND_OWNER_GROUPS",
		"loopback":                                 "$ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
		"DNS":                                      "--redirect-dns",
		"queries of applications":                  "--redirect-dns, --capture-all-dns",
		"answering them would reset a connection (istio#36566)": "--drop-invalid",
	}
}
