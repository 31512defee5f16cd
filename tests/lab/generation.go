package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
)

// Roles, as `upgrade-status -o json` gives them.
const (
	RoleServing  = "serving"
	RoleDraining = "draining"
	RoleStandby  = "standby"
)

// SettleWithin is how long an agent may take to know its role: two starts of Envoy, on a machine
// that runs other tests.
const SettleWithin = 2 * Deadline

// UpgradeStatus asks the slot's agent, with the command that operators use, for all generations and for itself.
func (s *Slot) UpgradeStatus() (all contract.UpgradeStatus, self contract.GenerationStatus, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	got, err := s.Exec(ctx, AgentPath, "upgrade-status", "-o", "json")
	if err != nil {
		return all, self, err
	}
	if got.Code != 0 {
		return all, self, fmt.Errorf("upgrade-status: %v", got)
	}
	if err := json.Unmarshal([]byte(got.Stdout), &all); err != nil {
		return all, self, fmt.Errorf("upgrade-status: %w: %v", err, got)
	}
	i := slices.IndexFunc(all.Generations, func(g contract.GenerationStatus) bool { return g.Self })
	if i < 0 {
		return all, self, fmt.Errorf("upgrade-status: the agent that was asked is not in it: %s", got.Stdout)
	}
	return all, all.Generations[i], nil
}

// InRole returns nil when the slot's agent has one of the roles.
func (s *Slot) InRole(roles ...string) error {
	_, self, err := s.UpgradeStatus()
	if err == nil && !slices.Contains(roles, self.Role) {
		err = fmt.Errorf("%s is %s, not %s", s.Name, self.Role, strings.Join(roles, " or "))
	}
	return err
}

// WaitRole waits until the slot's agent has one of the roles.
func (s *Slot) WaitRole(t T, roles ...string) {
	t.Helper()
	Eventually(t, SettleWithin, "the role of "+s.Name, func() error { return s.InRole(roles...) })
}

// ProcessesOf returns the pod's processes that are the program at a path of the container, as Processes does.
func (l *Lab) ProcessesOf(path string) []string {
	return slices.DeleteFunc(l.Processes(), func(line string) bool {
		var pid int
		_, _ = fmt.Sscan(line, &pid)
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err != nil || exe != path
	})
}
