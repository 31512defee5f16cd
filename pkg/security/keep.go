package security

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"

	"understudy.mesh/internal/atomicfile"
)

// File systems that are in memory (statfs(2)).
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// recall takes over what an agent of this pod kept before its container was restarted, if no predecessor has given more.
func (m *Manager) recall() {
	if m.c.Keep == "" || m.newest() != nil {
		return
	}
	data, err := readFile(m.c.Keep)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		m.log.Warn("the certificate that was kept is not used", "err", err)
		return
	}
	m.Import(data)
}

// keep writes what recall reads, for the owner alone. Elsewhere than in memory it writes nothing: a private key on a disk outlives the pod.
func (m *Manager) keep() error {
	data := m.Export()
	if data == nil {
		return nil
	}
	directory := filepath.Dir(m.c.Keep)
	var info syscall.Statfs_t
	if err := syscall.Statfs(directory, &info); err != nil {
		return fmt.Errorf("UNDERSTUDY_KEEP_CERTIFICATE: statfs %s: %w", directory, err)
	}
	if kind := uint32(info.Type); kind != tmpfsMagic && kind != ramfsMagic {
		return nil
	}
	_, err := atomicfile.Replace(m.c.Keep, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("UNDERSTUDY_KEEP_CERTIFICATE: %w", err)
	}
	return nil
}
