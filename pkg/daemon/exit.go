package daemon

import "errors"

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
