package envoy

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// stalledShare of the time in which nothing at all could go on means that a node, or the
// container, is starved. A node whose processors are merely all busy still gives everybody a share.
const stalledShare = 0.5

// pressureFiles are the kernel's pressure stall information (PSI, Documentation/accounting/psi.rst):
// the node's, and the container's own, where there is any. The share of the processor that a
// limit takes away shows in the latter only.
var pressureFiles = [...]string{
	"/proc/pressure/memory", "/proc/pressure/io",
	"/sys/fs/cgroup/cpu.pressure", "/sys/fs/cgroup/memory.pressure", "/sys/fs/cgroup/io.pressure",
}

// pressure reads how long nothing could go on for want of something. What cannot be read counts
// as no pressure.
type pressure struct {
	files []string
	last  []time.Duration
	at    time.Time
}

// starved tells whether that was so for most of the time since it was asked last; the first
// question, and one after a long time, only says no.
func (p *pressure) starved(now time.Time) (starved bool) {
	passed := now.Sub(p.at)
	comparable := len(p.last) == len(p.files) && passed < 2*(pulsePoll+maxLate)
	current := make([]time.Duration, len(p.files))
	for i, file := range p.files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		current[i] = fullStall(string(data))
		if comparable && float64(current[i]-p.last[i]) >= stalledShare*float64(passed) {
			starved = true
		}
	}
	p.last, p.at = current, now
	return starved
}

// fullStall is the total of the line "full": in which all that was not idle had to wait; 0
// without it.
func fullStall(text string) time.Duration {
	_, full, _ := strings.Cut("\n"+text, "\nfull ")
	full, _, _ = strings.Cut(full, "\n")
	_, total, _ := strings.Cut(full, "total=")
	us, err := strconv.ParseInt(total, 10, 63)
	if err != nil {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}
