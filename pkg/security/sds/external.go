package sds

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// healthTimeout is how long another server of this pod may take to answer a connection (Istio's).
const healthTimeout = time.Second

// Check says why nobody serves gRPC on a Unix socket; nil: somebody does. It takes a second at most.
func Check(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.TransientFailure {
			return fmt.Errorf("nobody serves gRPC on %s", path)
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("%s does not answer within %v", path, healthTimeout)
		}
	}
	return nil
}
