// Command release makes a release of the commit that is checked out: binaries, images, bills of materials, licences,
// checksums and signatures, in bin/release/VERSION/ below the root. `make release VERSION=v1.2.3` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"understudy.mesh/build/release/sign"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	version := flag.String("version", "", "what to call the release, such as v1.2.3")
	root := flag.String("root", ".", "the root of the repository")
	keyFile := flag.String("key", os.Getenv("COSIGN_KEY"), "file of the private key that signs; COSIGN_PASSWORD opens it (default: $COSIGN_KEY; none: no signature)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("argument %q: want flags alone", flag.Arg(0))
	}
	if err := checkVersion(*version); err != nil {
		return err
	}
	absolute, err := filepath.Abs(*root)
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	made, err := checkTree(ctx, absolute, *version)
	if err != nil {
		return err
	}
	var key *sign.Key
	if *keyFile != "" {
		if key, err = readKey(*keyFile, os.Getenv("COSIGN_PASSWORD")); err != nil {
			return err
		}
	}
	r := release{root: absolute, version: *version, commit: made, key: key, progress: os.Stderr}
	return r.make(ctx)
}

func readKey(path, password string) (*sign.Key, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("COSIGN_KEY: %w: want the file of a private key, or nothing for a release that is not signed", err)
	}
	key, err := sign.ParseKey(text, []byte(password))
	if err != nil {
		return nil, fmt.Errorf("COSIGN_KEY %s: %w", path, err)
	}
	return key, nil
}
