package access

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Check fails early and in plain words: iptables itself would say
// "Permission denied" or, worse, "table does not exist".
func Check() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New(Needs)
	}
	return nil
}

// Needs is what the right to change rules takes, for the errors of those who lack it.
const Needs = "needs uid 0 with the capabilities NET_ADMIN and NET_RAW in the pod's network namespace"
