package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Class
	}{
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), Refused},
		{fmt.Errorf("read: %w", syscall.ECONNRESET), Reset},
		{fmt.Errorf("write: %w", syscall.EPIPE), Reset},
		{errors.New("http2: client connection force closed via ClientConn.Close"), Reset},
		{errors.New("http2: client connection lost"), Timeout},
		{context.DeadlineExceeded, Timeout},
		{io.ErrUnexpectedEOF, EOF},
		{errors.New("http2: server sent GOAWAY and closed the connection"), EOF},
		{errors.New("something else"), Other},
	} {
		if got := classify(tt.err); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.err, got, tt.want)
		}
	}
}
