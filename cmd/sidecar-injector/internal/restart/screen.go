package restart

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy.mesh/cmd/sidecar-injector/internal/terminal"
)

// screen is where a run says how far it is: lines that stay, and on a terminal below them one that changes.
type screen struct {
	out   io.Writer
	live  bool
	total int

	mu    sync.Mutex
	ended int
	now   map[string]string // how far each workload is that is under way
	held  map[string]bool   // of those: that a line says already what holds it
	shown time.Time
}

// heldBy begins what is said of a workload that waits for others.
const heldBy = "held: "

const (
	// eraseLine is what takes the changing line away; liveWidth is how much of it is shown, since a line that wraps stays.
	eraseLine = "\r\x1b[K"
	liveWidth = 79
	// liveEvery is how often it changes at most.
	liveEvery = 200 * time.Millisecond
)

// line says something that stays.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	fmt.Fprintln(s.out, terminal.Printable(fmt.Sprintf(format, args...)))
	s.draw(true)
}

// say is how far a workload is. What holds it is said once where no line changes.
func (s *screen) say(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		s.now, s.held = map[string]string{}, map[string]bool{}
	}
	s.now[name] = text
	holds := strings.HasPrefix(text, heldBy)
	if holds && !s.live && !s.held[name] {
		fmt.Fprintln(s.out, terminal.Printable(name+": "+text))
	}
	s.held[name] = holds
	s.draw(false)
}

// done is that a workload is not under way any more.
func (s *screen) done(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.now, name)
	delete(s.held, name)
	s.ended++
}

// end takes the changing line away.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.live = false
}

func (s *screen) erase() {
	if s.live {
		fmt.Fprint(s.out, eraseLine)
	}
}

func (s *screen) draw(now bool) {
	if !s.live || len(s.now) == 0 || !now && time.Since(s.shown) < liveEvery {
		return
	}
	s.shown = time.Now()
	parts := []string{fmt.Sprintf("%d of %d done", s.ended, s.total)}
	for _, name := range slices.Sorted(maps.Keys(s.now)) {
		parts = append(parts, name+" "+s.now[name])
	}
	line := []rune(terminal.Printable(strings.Join(parts, "; ")))
	if len(line) > liveWidth {
		line = append(line[:liveWidth-1], '…')
	}
	fmt.Fprint(s.out, eraseLine+string(line))
}
