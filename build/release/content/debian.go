package content

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Package is an installed Debian package.
type Package struct{ Name, Version, Arch, Source string }

// errRecord is a record of dpkg's that says too little.
var errRecord = errors.New("a record of dpkg without Package or Version")

// readStatus reads dpkg's records: fields in paragraphs, deb822(5).
func readStatus(r io.Reader) ([]Package, error) {
	var all []Package
	fields := map[string]string{}
	end := func() error {
		if len(fields) == 0 {
			return nil
		}
		p := Package{Name: fields["Package"], Version: fields["Version"], Arch: fields["Architecture"], Source: fields["Source"]}
		// A removed package may have left its settings: "deinstall ok config-files".
		status, given := fields["Status"]
		clear(fields)
		if given && !strings.HasSuffix(status, " installed") {
			return nil
		}
		if p.Name == "" || p.Version == "" {
			return fmt.Errorf("%w: %+v", errRecord, p)
		}
		all = append(all, p)
		return nil
	}
	var broken error
	err := readLines(r, func(line string) {
		if strings.TrimSpace(line) == "" {
			broken = errors.Join(broken, end())
			return
		}
		if name, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			fields[name] = strings.TrimSpace(value)
		}
	})
	return all, errors.Join(err, broken, end())
}

func readLines(r io.Reader, line func(string)) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line(scanner.Text())
	}
	return scanner.Err()
}
