package daemon

import (
	"errors"
	"fmt"
	"io"
)

// The exit codes of every command.
const (
	ExitDone   = 0 // it did what it was asked, or was told to stop
	ExitFailed = 1 // it could not
	ExitUsage  = 2 // the command line or the configuration is wrong; trying again does not help
)

// UsageError is a mistake on the command line or in the configuration.
type UsageError string

func (e UsageError) Error() string { return string(e) }

// ExitCode is the exit code that err stands for.
func ExitCode(err error) int {
	var usage UsageError
	var problems Problems
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &usage), errors.As(err, &problems):
		return ExitUsage
	}
	return ExitFailed
}

// Exit prints what a command ended with, if it is an error, and returns its exit code. Problems of a file
// stand alone on their lines, as editors expect them.
func Exit(stderr io.Writer, command string, err error) int {
	var problems Problems
	switch {
	case err == nil:
	case errors.As(err, &problems):
		fmt.Fprintln(stderr, problems)
	default:
		fmt.Fprintf(stderr, "%s: %v\n", command, err)
	}
	return ExitCode(err)
}
