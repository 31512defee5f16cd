package upstream

import (
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// confFile watches resolv.conf by looking at it: one stat a second at most,
// and only while there are queries to forward.
type confFile struct {
	path string
	log  *slog.Logger

	checked time.Time
	seen    bool // read says nothing new without it
	failed  bool
	info    fs.FileInfo // of what was read
}

// statEvery is how soon a changed resolv.conf is noticed.
const statEvery = time.Second

// read returns the file's content when it is new or has changed. A file that
// cannot be read is an empty one: the caller has no servers then.
func (c *confFile) read(now time.Time) (resolvConf, bool) {
	if c.seen && now.Sub(c.checked) < statEvery {
		return resolvConf{}, false
	}
	c.checked = now
	info, err := os.Stat(c.path)
	if err == nil && c.seen && !c.failed && c.same(info) {
		return resolvConf{}, false
	}
	if err == nil {
		c.info = info
	}
	conf, err := readResolvConf(c.path)
	if err != nil {
		if c.seen && c.failed {
			return resolvConf{}, false
		}
		c.log.Warn("cannot read the dns upstreams", "file", c.path, "error", err)
	} else if c.seen {
		c.log.Info("read the dns upstreams anew", "file", c.path, "servers", conf.Servers)
	}
	c.seen, c.failed = true, err != nil
	return conf, true
}

func (c *confFile) same(info fs.FileInfo) bool {
	return os.SameFile(c.info, info) && c.info.Size() == info.Size() && c.info.ModTime().Equal(info.ModTime())
}
