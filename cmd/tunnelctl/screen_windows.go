package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableSequences has the console take escape sequences for what they are.
func enableSequences(out *os.File) (restore func(), err error) {
	h := windows.Handle(out.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(h, &mode); err != nil {
		return nil, err
	}
	return func() { windows.SetConsoleMode(h, mode) }, windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING|windows.ENABLE_PROCESSED_OUTPUT)
}

// watchSize does nothing: the size is looked at with each frame.
func watchSize(chan os.Signal) (stop func()) { return func() {} }

// suspend does nothing: there is no such thing here.
func suspend() {}
