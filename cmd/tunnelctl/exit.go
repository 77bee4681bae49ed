package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
)

// The exit codes besides those that every command of Culvert has: daemon.ExitDone, ExitFailed and ExitUsage.
const (
	exitDenied      = 3   // there is no token, the relay does not accept it, or its role may not do that
	exitNotFound    = 4   // there is no such site, service, stream, request, certificate, token or operator
	exitUnreachable = 5   // the relay does not answer, or what is wanted of it is away: trying again later may help
	exitInterrupted = 130 // Ctrl-C before it was done; what runs until Ctrl-C ends with 0
)

// exitHelp is the topic exit-codes, and a section of the man page.
const exitHelp = `0    done, or stopped as told
1    failed for another reason than the following
2    usage: the command line, or a file that is checked, is wrong; or the relay says so
3    not allowed: no token here, the relay does not accept it, or its role is too small
4    not found: no such site, service, session, stream, request, certificate, token or operator
5    not reachable: the relay does not answer, or the site or target is away; later it may be there
6    diag: it has a report, and in that something is wrong
22   of http --fail alone: the service has answered with an error
130  interrupted by Ctrl-C before it was done

Errors go to stderr, as one line that says what to do next; with --json as one JSON object:

  {"error":"no site \"ofice\": did you mean \"office\"?","exit_code":4}`

// failure is an error with its exit code. Its text says what to do next.
type failure struct {
	code  int
	text  string
	cause error // nil: the text says it all
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

// failf makes an error that ends the program with code. A %w of format is its cause.
func failf(code int, format string, values ...any) error {
	err := fmt.Errorf(format, values...)
	return &failure{code: code, text: err.Error(), cause: errors.Unwrap(err)}
}

// exitCode is the exit code that err stands for: all commands have theirs from here.
func exitCode(err error) int {
	var (
		known   *failure
		refused *admin.Error
		dns     *net.DNSError
		network *net.OpError
	)
	switch {
	case err == nil:
		return daemon.ExitDone
	case errors.As(err, &known):
		return known.code
	case daemon.ExitCode(err) == daemon.ExitUsage:
		return daemon.ExitUsage
	case errors.As(err, &refused):
		return refusalCode(refused.Code)
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &dns), errors.As(err, &network) && slices.Contains([]string{"dial", "read", "write"}, network.Op),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return exitUnreachable
	}
	return daemon.ExitFailed
}

// refusalCode is the exit code for an answer of the relay.
func refusalCode(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return daemon.ExitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitDenied
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return exitUnreachable
	}
	return daemon.ExitFailed
}

// report prints what a command ended with, if it is an error, and returns the exit code.
func report(w io.Writer, err error, asJSON bool) int {
	code := exitCode(err)
	var problems daemon.Problems
	switch {
	case err == nil:
	case asJSON:
		b, _ := json.Marshal(struct {
			Error string `json:"error"`
			Code  int    `json:"exit_code"`
		}{err.Error(), code})
		fmt.Fprintf(w, "%s\n", escaped(b))
	case errors.As(err, &problems): // of a file: each on its line, as editors expect them
		fmt.Fprintln(w, printable(problems.Error()))
	case code == exitInterrupted:
		fmt.Fprintln(w, "tunnelctl: interrupted")
	default:
		fmt.Fprintf(w, "tunnelctl: %s\n", printable(err.Error()))
	}
	return code
}
