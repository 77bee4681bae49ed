package daemon

import (
	"os"

	"golang.org/x/sys/windows"
)

// isTyped reports whether what comes from f is typed by somebody.
func isTyped(f *os.File) bool {
	var mode uint32
	return windows.GetConsoleMode(windows.Handle(f.Fd()), &mode) == nil
}

// hideInput has the console not show what is typed until restore is called.
func hideInput(f *os.File) (restore func(), err error) {
	h := windows.Handle(f.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(h, &mode); err != nil {
		return nil, err
	}
	restore = func() { windows.SetConsoleMode(h, mode) }
	return restore, windows.SetConsoleMode(h, mode&^windows.ENABLE_ECHO_INPUT|windows.ENABLE_LINE_INPUT|windows.ENABLE_PROCESSED_INPUT)
}
