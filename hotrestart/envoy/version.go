package envoy

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// protocolVersion is the only version of Envoy's hot-restart protocol that is spoken
	// here: that of every Envoy from 1.16 (2020) on, tried with 1.36.2, 1.39.3 and 1.40.0.
	protocolVersion = 11
	// versionTimeout is for `envoy --hot-restart-version`, which takes 50 ms unless 100 MB
	// of binary come from a slow disk first.
	versionTimeout = 10 * time.Second
	// versionGrace is how long a killed binary's descendants may keep its output open.
	versionGrace = time.Second
	// maxVersionOutput is far more than "11.104" and a newline.
	maxVersionOutput = 256
	// minMemorySize is the two numbers that the segment begins with; maxMemorySize is far
	// more than any Envoy wants (104).
	minMemorySize = 16
	maxMemorySize = 1 << 16
)

// Version is what `envoy --hot-restart-version` prints, "11.104": Envoys of one Version
// can take part in the same hot restart.
type Version struct {
	// Version is that of the protocol and of the shared memory.
	Version uint64
	// Size is that of the shared memory, in bytes.
	Size uint64
}

// String is Envoy's own form, "11.104".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Version, v.Size) }

// Check says in an error why an Envoy of this version cannot be hot-restarted here.
// Start such an Envoy with --disable-hot-restart.
func (v Version) Check() error {
	if v.Version != protocolVersion {
		return fmt.Errorf("hot-restart version %s: only version %d of the protocol is known", v, protocolVersion)
	}
	if v.Size < minMemorySize || v.Size > maxMemorySize {
		return fmt.Errorf("hot-restart version %s: a shared memory of %d bytes is out of %d to %d", v, v.Size, minMemorySize, maxMemorySize)
	}
	return nil
}

// ReadVersion asks an Envoy binary for its Version, in at most 10 s. An Envoy that was
// built without hot restart answers "disabled", which is an error like any other answer
// that is not of the form "11.104". Whether the version can be used is for Check to say.
func ReadVersion(ctx context.Context, binary string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--hot-restart-version")
	cmd.WaitDelay = versionGrace
	output := new(prefixWriter)
	cmd.Stdout, cmd.Stderr = output, output // Envoy prints it to stderr
	if err := cmd.Run(); err != nil {
		return Version{}, fmt.Errorf("ask %s --hot-restart-version: %w", binary, errors.Join(err, ctx.Err()))
	}
	version, err := parseVersion(string(output.kept))
	if err != nil {
		return Version{}, fmt.Errorf("ask %s --hot-restart-version: %w", binary, err)
	}
	return version, nil
}

// parseVersion finds the line of the form 11.104: a warning may stand around it.
func parseVersion(output string) (Version, error) {
	for line := range strings.Lines(output) {
		version, size, _ := strings.Cut(strings.TrimSpace(line), ".")
		v, versionErr := strconv.ParseUint(version, 10, 64)
		s, sizeErr := strconv.ParseUint(size, 10, 64)
		if versionErr == nil && sizeErr == nil {
			return Version{Version: v, Size: s}, nil
		}
	}
	return Version{}, fmt.Errorf("%.40q is not of the form 11.104 (is hot restart compiled in?)", output)
}

// prefixWriter keeps the first maxVersionOutput bytes and takes the rest as well, so
// that a binary that prints much is not ended by SIGPIPE.
type prefixWriter struct{ kept []byte }

func (w *prefixWriter) Write(b []byte) (int, error) {
	w.kept = append(w.kept, b[:min(len(b), maxVersionOutput-len(w.kept))]...)
	return len(b), nil
}
