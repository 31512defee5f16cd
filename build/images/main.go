// Command images makes the container images of package contents as OCI layouts, bin/images/NAME, without a container
// engine. `make images` runs it: the arguments are the architectures, each with its Envoy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/build/contents"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var m maker
	var created int64
	flag.StringVar(&m.out, "out", "bin/images", "directory of the layouts")
	flag.StringVar(&m.cache, "cache", ".images", "directory of packages, layers and programs: programs/ARCHITECTURE/ has what `make build` makes")
	flag.StringVar(&m.version, "version", "dev", "version of the programs")
	flag.StringVar(&m.tag, "tag", "dev", "tag of the images in their layouts")
	flag.Int64Var(&created, "created", 0, "when the source is from, in seconds since 1970")
	flag.Parse()
	m.created = time.Unix(created, 0)
	for _, argument := range flag.Args() {
		arch, envoy, found := strings.Cut(argument, "=")
		if !found || envoy == "" {
			return fmt.Errorf("argument %q: want ARCHITECTURE=ENVOY, such as amd64=bin/envoy", argument)
		}
		m.platforms = append(m.platforms, platform{arch, envoy})
	}
	if len(m.platforms) == 0 {
		return errors.New("no architecture: want ARCHITECTURE=ENVOY, such as amd64=bin/envoy")
	}
	for _, image := range contents.Images {
		if err := m.make(ctx, image); err != nil {
			return fmt.Errorf("image %s: %w", image.Name, err)
		}
	}
	return nil
}
