package main

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// screen is a terminal that shows frames and reads keys. What it was before comes back with close.
type screen struct {
	in, out *os.File
	old     *term.State
	restore func() // what else was changed about out
}

// The sequences are those of xterm, which terminals, multiplexers and Windows have as well: another screen and back, cursor
// away, no wrapping at the right edge; 2026 has those that know it show a frame at once.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	beginFrame  = "\x1b[?2026h\x1b[H"
	clearLine   = "\x1b[2K"
	clearBelow  = "\x1b[J"
	endFrame    = "\x1b[?2026l"
	clearScreen = "\x1b[2J"
)

// openScreen takes a terminal over.
func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{in: in, out: out}
	return s, s.open()
}

func (s *screen) open() (err error) {
	if s.restore, err = enableSequences(s.out); err != nil {
		return err
	}
	if s.old, err = term.MakeRaw(int(s.in.Fd())); err != nil {
		s.restore()
		return err
	}
	_, err = io.WriteString(s.out, enterScreen)
	return err
}

// close gives the terminal back.
func (s *screen) close() {
	io.WriteString(s.out, leaveScreen)
	term.Restore(int(s.in.Fd()), s.old)
	s.restore()
}

// size is that of the terminal; 80x24 if it does not say.
func (s *screen) size() (width, height int) {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 1 || height < 1 {
		return 80, 24
	}
	return width, height
}

// show draws a frame in one write, so that nothing flickers. A line is cleared before it is written: behind one that fills the
// terminal the cursor is still on its last cell.
func (s *screen) show(lines []string, height int) error {
	var b strings.Builder
	b.WriteString(beginFrame)
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(clearLine + l)
	}
	if len(lines) < height {
		b.WriteString("\r\n" + clearBelow)
	}
	b.WriteString(endFrame)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// readKeys hands on what is typed, until in ends; it is a goroutine that the end of the program ends, as a read of a terminal waits
// for its user.
func readKeys(in io.Reader, keys chan<- []key, done <-chan struct{}) {
	b := make([]byte, 256)
	for {
		n, err := in.Read(b)
		if n > 0 {
			select {
			case keys <- parseKeys(b[:n]):
			case <-done:
				return
			}
		}
		if err != nil {
			close(keys)
			return
		}
	}
}
