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
	size    int64
	mod     time.Time
	inode   fs.FileInfo
}

// statEvery is how soon a changed resolv.conf is noticed.
const statEvery = time.Second

// read returns the file's content when it is new or has changed. A file that
// cannot be read is an empty one: the caller has no servers then.
func (c *confFile) read(now time.Time) (ResolvConf, bool) {
	if c.seen && now.Sub(c.checked) < statEvery {
		return ResolvConf{}, false
	}
	c.checked = now
	info, err := os.Stat(c.path)
	if err == nil && c.seen && !c.failed && c.same(info) {
		return ResolvConf{}, false
	}
	if err == nil {
		c.size, c.mod, c.inode = info.Size(), info.ModTime(), info
	}
	conf, err := ReadResolvConf(c.path)
	if err != nil {
		if c.seen && c.failed {
			return ResolvConf{}, false
		}
		c.log.Warn("cannot read the dns upstreams", "file", c.path, "error", err)
	} else if c.seen {
		c.log.Info("read the dns upstreams anew", "file", c.path, "servers", conf.Servers)
	}
	c.seen, c.failed = true, err != nil
	return conf, true
}

func (c *confFile) same(info fs.FileInfo) bool {
	return c.size == info.Size() && c.mod.Equal(info.ModTime()) && os.SameFile(c.inode, info)
}
