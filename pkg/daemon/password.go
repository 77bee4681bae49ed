package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// ReadPassword reads a line of in; if it is typed, without an echo and after a prompt, and a second time if it is a new
// one. The command line and the environment are no places for it: others see them.
func ReadPassword(in io.Reader, prompt io.Writer, isNew bool) ([]byte, error) {
	f, ok := in.(*os.File)
	if !ok || !isTyped(f) {
		return readLine(bufio.NewReader(in))
	}
	restore, err := hideInput(f)
	if err != nil {
		return nil, fmt.Errorf("the terminal goes on showing what is typed: %w; give the password on stdin", err)
	}
	defer restore()
	r := bufio.NewReader(f)
	ask := func(what string) ([]byte, error) {
		fmt.Fprint(prompt, what)
		defer fmt.Fprintln(prompt)
		return readLine(r)
	}
	first, err := ask("password: ")
	if err != nil || !isNew {
		return first, err
	}
	second, err := ask("again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, second) {
		return nil, errors.New("these are two different passwords")
	}
	return first, nil
}

// readLine reads a line of at most the reader's buffer, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("password: %w", err)
	}
	line = bytes.Clone(bytes.TrimRight(line, "\r\n"))
	if len(line) == 0 {
		return nil, UsageError("no password: type it, or give it as a line on stdin")
	}
	return line, nil
}
