package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"understudy.mesh/tests/lab"
)

// TestService is whom the pod's Service lets in: while every slot runs and the application's probe is answered, everybody; else nobody new.
func TestService(t *testing.T) {
	b := newBed(t, lab.KubeletOptions{ReadinessProbe: "http://" + lab.PodIP + ":8080/"})
	lab.NewService(t, b.kubelet)
	lab.ServeTCP(b.Pod.Listen(t, ":9000"), lab.Echo)
	b.kruise.WaitUpgraded(t)
	b.refuses(t, "before the probe is answered")

	application := b.Pod.Listen(t, ":8080")
	lab.ServeHTTP(t, application, "app")
	kept := b.connects(t)
	_ = application.Close()
	b.refuses(t, "since the probe fails")
	if _, err := io.WriteString(kept, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(kept, make([]byte, 1)); err != nil {
		t.Errorf("the connection that there was: %v", err)
	}

	lab.ServeHTTP(t, b.Pod.Listen(t, ":8080"), "app")
	b.connects(t)
	b.kruise.Upgrade(lab.Image{Name: "nowhere", Missing: true})
	b.refuses(t, "without an image for a slot")
	b.kruise.Upgrade(b.next)
	b.connects(t)
}

// connects waits until the Service lets a client in, and returns its connection.
func (b *bed) connects(t *testing.T) (c net.Conn) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, "the Service lets clients in", func() (err error) {
		c, err = b.Out.Dial(context.Background(), "tcp", lab.ServiceIP+":9000")
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bed) refuses(t *testing.T, why string) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, "the Service refuses clients "+why, func() error {
		c, err := b.Out.Dial(context.Background(), "tcp", lab.ServiceIP+":9000")
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("it does not: %v", err)
		}
		return nil
	})
}
