package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// requestTimeout bounds one request, as that of the agent's own command.
	requestTimeout = 60 * time.Second
	// maxAnswer bounds what is passed on of an answer: ten times what /config_dump of a large mesh has.
	maxAnswer = 256 << 20
	// headerBuffer bounds a line of the answer's head.
	headerBuffer = 64 << 10
)

// getRequest is a request that Istio's command line describes.
type getRequest struct {
	port         int
	method, path string
}

// parseRequest reads what follows "request". Of the flags only --debug-port matters; the word after another one may be
// its value, so that what looks like a method is the method.
func parseRequest(args []string) (getRequest, error) {
	r := getRequest{port: adminPort}
	for i := 0; i < len(args); i++ {
		value, is := strings.CutPrefix(args[i], "--debug-port=")
		if args[i] == "--debug-port" {
			is = true
			if i++; i < len(args) {
				value = args[i]
			}
		}
		switch {
		case is:
			port, err := strconv.Atoi(value)
			if err != nil || port < 1 || port > maxPort { // --statusPort may be any
				return r, errors.New("--debug-port: " + value + ": give a port from 1 to 65535, such as 15000, 15020 or 15021")
			}
			r.port = port
		case strings.HasPrefix(args[i], "-"): // another flag
		case r.method == "" && isMethod(args[i]):
			r.method = args[i]
		case r.method != "" && r.path == "":
			r.path = "/" + strings.TrimPrefix(args[i], "/")
		}
	}
	if r.method == "" || r.path == "" {
		return r, errors.New("give a method and a path: pilot-agent request GET PATH")
	}
	if strings.ContainsFunc(r.path, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return r, errors.New(strconv.Quote(r.path) + ": give a path without blanks and control characters")
	}
	return r, nil
}

func isMethod(word string) bool {
	return word != "" && !strings.ContainsFunc(word, func(c rune) bool { return c < 'A' || c > 'Z' })
}

// The agent's ports. The generation that serves has them, and all containers of a pod have one loopback.
const (
	adminPort  = 15000
	statusPort = 15020
	readyPort  = 15021 // the status server's, too, in ASM's manifests
)

const maxPort = 65535

// ports are where a generation may answer what is meant for a port.
func ports(port int) []int {
	switch port {
	case adminPort, 15004:
		return []int{adminPort}
	case statusPort, readyPort:
		return []int{port, statusPort + readyPort - port}
	}
	return []int{port}
}

// answer has the generation that serves answer a GET, prints that, and returns the exit status.
func answer(r getRequest) int {
	fail := func(err error) int {
		complain("request GET " + r.path + ": " + err.Error() + "; " + elsewhere(os.Args[1:]))
		return exitError
	}
	time.AfterFunc(requestTimeout, func() { os.Exit(fail(errors.New("no whole answer within " + requestTimeout.String()))) })
	conn, err := dial(ports(r.port))
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	if _, err := conn.WriteString("GET " + r.path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return fail(err)
	}
	status, err := copyAnswer(os.Stdout, conn)
	if err != nil {
		return fail(err)
	}
	if status > 399 && status != 404 { // as Istio's command
		complain("request GET " + r.path + ": HTTP status code " + strconv.Itoa(status))
		return exitError
	}
	return 0
}

// dial connects to the first of the ports at which somebody listens on loopback. It does without package net,
// which takes half a MiB of every pod's memory.
func dial(ports []int) (conn *os.File, err error) {
	for _, port := range ports {
		for _, to := range []syscall.Sockaddr{
			&syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}},
			&syscall.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}},
		} {
			family := syscall.AF_INET
			if _, ok := to.(*syscall.SockaddrInet6); ok {
				family = syscall.AF_INET6
			}
			fd, socketErr := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if socketErr != nil { // a family that the node does not have
				err = socketErr
				continue
			}
			if err = syscall.Connect(fd, to); err == nil {
				return os.NewFile(uintptr(fd), "the connection"), nil
			}
			syscall.Close(fd)
		}
	}
	return nil, errors.New("no generation serves at loopback port " + strconv.Itoa(ports[0]) + ": " + err.Error())
}

// copyAnswer reads an HTTP/1.1 answer and writes its body. An answer that ends early is an error.
func copyAnswer(to io.Writer, from io.Reader) (status int, err error) {
	all := &io.LimitedReader{R: from, N: maxAnswer}
	r := bufio.NewReaderSize(all, headerBuffer)
	line, err := readLine(r)
	if err != nil {
		return 0, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(version, "HTTP/1.") {
		return 0, errors.New("no answer in HTTP: " + strconv.Quote(line))
	}
	length, chunked := int64(-1), false
	for {
		if line, err = readLine(r); err != nil {
			return 0, err
		}
		if line == "" {
			break
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(key) {
		case "content-length":
			if length, err = strconv.ParseInt(value, 10, 64); err != nil || length < 0 {
				return 0, errors.New("Content-Length: " + strconv.Quote(value))
			}
		case "transfer-encoding":
			chunked = strings.EqualFold(value, "chunked")
		}
	}
	switch {
	case chunked:
		return status, copyChunks(to, r)
	case length >= 0:
		return status, copyN(to, r, length)
	}
	if _, err = io.Copy(to, r); err == nil && all.N == 0 {
		err = early(io.EOF)
	}
	return status, err
}

// copyChunks writes what comes in the chunked transfer coding (RFC 9112, 7.1). What follows the last chunk is of no interest.
func copyChunks(to io.Writer, r *bufio.Reader) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 64)
		if err != nil || n < 0 {
			return errors.New("size of a chunk: " + strconv.Quote(line))
		}
		if n == 0 {
			return nil
		}
		if err := copyN(to, r, n); err != nil {
			return err
		}
		if _, err := readLine(r); err != nil {
			return err
		}
	}
}

func copyN(to io.Writer, r *bufio.Reader, n int64) error {
	_, err := io.CopyN(to, r, n)
	return early(err)
}

// readLine reads a line without its end.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return "", early(err)
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// early says of an end that it came too soon.
func early(err error) error {
	if err == io.EOF {
		return errors.New("the answer ends early, or has more than " + strconv.Itoa(maxAnswer>>20) + " MiB")
	}
	return err
}
