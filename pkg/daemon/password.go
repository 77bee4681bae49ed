package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// ReadSecret reads a line of in, as ReadPassword does, of which what says what it is.
func ReadSecret(in io.Reader, prompt io.Writer, what string) ([]byte, error) {
	return readSecret(in, prompt, what, false)
}

// ReadPassword reads a line of in; if it is typed, without an echo and after a prompt, and a second time if it is a new
// one. The command line and the environment are no places for it: others see them.
func ReadPassword(in io.Reader, prompt io.Writer, isNew bool) ([]byte, error) {
	return readSecret(in, prompt, "password", isNew)
}

func readSecret(in io.Reader, prompt io.Writer, what string, isNew bool) ([]byte, error) {
	f, ok := in.(*os.File)
	if !ok || !isTyped(f) {
		return readLine(bufio.NewReader(in), what)
	}
	restore, err := hideInput(f)
	if err != nil {
		return nil, fmt.Errorf("the terminal goes on showing what is typed: %w; give it on stdin", err)
	}
	defer restore()
	r := bufio.NewReader(f)
	ask := func(text string) ([]byte, error) {
		fmt.Fprint(prompt, text)
		defer fmt.Fprintln(prompt)
		return readLine(r, what)
	}
	first, err := ask(what + ": ")
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
func readLine(r *bufio.Reader, what string) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	line = bytes.Clone(bytes.TrimRight(line, "\r\n"))
	if len(line) == 0 {
		return nil, UsageError("no " + what + ": type it, or give it as a line on stdin")
	}
	return line, nil
}
