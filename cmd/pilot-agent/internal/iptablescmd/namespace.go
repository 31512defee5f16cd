package iptablescmd

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Enter moves the calling thread into the network namespace that was given, until leave.
// With --cni-mode the xtables lock becomes one of that namespace.
func (o *Options) Enter() (leave func(), err error) {
	leave = func() {}
	if o.namespace != "" {
		if leave, err = enterNamespace(o.namespace); err != nil {
			return nil, err
		}
	}
	if o.cniMode { // as in Istio: the node's lock is for the node's own rules
		if err := os.Setenv("XTABLES_LOCKFILE", o.namespace); err != nil {
			leave()
			return nil, fmt.Errorf("name the xtables lock: %w", err)
		}
	}
	return leave, nil
}

// enterNamespace moves the calling thread, and so what this goroutine opens and starts, into
// the network namespace of a file, until leave.
func enterNamespace(path string) (leave func(), err error) {
	fail := func(err error, remedy string) (func(), error) {
		return nil, fmt.Errorf("enter network namespace %s: %w: %s", path, err, remedy)
	}
	target, err := os.Open(path)
	if err != nil {
		return fail(err, "want the file of a namespace, for example /proc/PID/ns/net or /run/netns/NAME")
	}
	defer target.Close()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fail(err, "needs /proc")
	}
	runtime.LockOSThread()
	err = unix.Setns(int(target.Fd()), unix.CLONE_NEWNET)
	if err == nil {
		return func() {
			if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread() // else the thread ends with its goroutine
			}
			own.Close()
		}, nil
	}
	runtime.UnlockOSThread()
	own.Close()
	switch {
	case errors.Is(err, unix.EPERM):
		return fail(err, "needs the capability SYS_ADMIN here and NET_ADMIN there")
	case errors.Is(err, unix.EINVAL):
		return fail(err, "this is no file of a network namespace")
	}
	return fail(err, "see setns(2)")
}
