package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"understudy.mesh/tests/load"
)

// trafficEnv makes this program, executed again, one side of a Traffic: a namespace belongs to a process.
const trafficEnv = "LAB_TRAFFIC"

// TrafficSide is the clients in one namespace.
type TrafficSide struct {
	From  *Namespace
	Flows []load.Flow
}

// Traffic is a load on a pod, each of its sides a process in its namespace.
type Traffic struct {
	processes []*exec.Cmd
	output    []*bufio.Reader // of each
	ended     bool
}

// StartTraffic starts a load, which ends with Stop or with the test. The test's TestMain begins with RunTraffic.
func StartTraffic(t T, sides ...TrafficSide) *Traffic {
	t.Helper()
	tr := &Traffic{}
	t.Cleanup(func() { _, _ = tr.Stop() })
	for _, side := range sides {
		config, err := json.Marshal(load.Config{Flows: side.Flows})
		if err != nil {
			t.Fatalf("lab: write the load's configuration: %v", err)
		}
		cmd := side.From.Self(t, trafficEnv+"=1")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(config), nil
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatalf("lab: start the load: %v", err)
		}
		tr.processes, tr.output = append(tr.processes, cmd), append(tr.output, bufio.NewReader(stdout))
	}
	for i, output := range tr.output {
		if line, err := output.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("lab: start the load: %q, %v: %s", line, err, tr.processes[i].Stderr)
		}
	}
	return tr
}

// Stop ends the load and returns what it counted; the first time only, later nothing.
func (tr *Traffic) Stop() (report load.Report, err error) {
	if tr.ended {
		return report, nil
	}
	tr.ended = true
	for _, cmd := range tr.processes {
		err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
	}
	for i, cmd := range tr.processes {
		var one load.Report
		err = errors.Join(err, json.NewDecoder(tr.output[i]).Decode(&one))
		waitErr := cmd.Wait()
		err = errors.Join(err, waitErr)
		report = report.Merge(one)
		if waitErr != nil {
			err = fmt.Errorf("%w: %s", err, cmd.Stderr)
		}
	}
	return report, err
}

// RunTraffic is what the process of a TrafficSide does, to its end; false in every other process.
func RunTraffic() (ran bool, err error) {
	if os.Getenv(trafficEnv) == "" {
		return false, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := load.ReadConfig(os.Stdin)
	if err != nil {
		return true, err
	}
	fmt.Println("ready") // SIGTERM asks for the report from here on
	final, err := load.Run(ctx, config, func(load.Report) {})
	return true, errors.Join(err, json.NewEncoder(os.Stdout).Encode(final))
}

// Self is this program as another process in the namespace, with env besides its own; what it says is kept in buffers.
func (n *Namespace) Self(t T, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("lab: find this program: %v", err)
	}
	cmd := n.Command(context.Background(), self)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return cmd
}
