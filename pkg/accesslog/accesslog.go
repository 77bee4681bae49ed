// Package accesslog writes lines to a file, or to standard output, for producers that must not wait.
//
//	l, err := accesslog.Open(accesslog.Config{Path: "/var/log/culvert/access.log", MaxSize: 100 << 20, Keep: 5})
//	if err != nil { … }
//	l.Write(lines)   // from any goroutine: copies, and returns at once
//	l.Reopen()       // after somebody else has moved the file
//	err = l.Close()  // what was written is in the file
//
// # Invariants
//
//   - Write takes whole lines and never waits for the disk. What does not fit into Config.Buffer is dropped and
//     counted, and so is what could not be written.
//   - A line is in one file, and whole: what a full disk leaves of one is cut off, or ended before the next.
//   - One goroutine writes. It looks where Path leads before it does, so that a file that was moved, or a folder that
//     was deleted, costs no line that comes later.
package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	gather     = 100 * time.Millisecond // lines wait that long for others
	tellEvery  = time.Minute            // OnTrouble hears no more often
	fileMode   = 0o640                  // visitors' addresses: not for everybody
	folderMode = 0o750
)

// Config is what Open takes.
type Config struct {
	// Path is the file. Its folder is made if it is missing. Required unless Out is there.
	Path string

	// Out is written to instead of a file.
	Out io.Writer

	// MaxSize is how many bytes a file may have: then it becomes Path.1, Path.1 becomes Path.2, and so on. 0: any
	// number, because somebody else rotates it.
	MaxSize int64

	// Keep is how many of these older files are kept. 0: none.
	Keep int

	// Buffer is how many bytes may wait to be written. 0: 4 MiB.
	Buffer int

	// OnTrouble is told that lines were dropped since the last time, and why, or that a file cannot be moved; and with
	// a nil error that all is well again. It is called on the goroutine that writes, once a minute at most. If nil,
	// nobody is told.
	OnTrouble func(dropped uint64, err error)
}

var errBehind = errors.New("lines come faster than they can be written")

// Log is an access log that is open.
type Log struct {
	config Config
	wake   chan struct{} // of one: there is something to write, or to do
	done   chan struct{}

	mu      sync.Mutex
	pending []byte
	dropped uint64 // lines, in all
	reopen  bool
	closed  bool

	// Owned by run.
	file    *os.File  // nil: none is open
	size    int64     // of file
	torn    bool      // the last line has no end
	told    uint64    // of dropped, to OnTrouble
	toldAt  time.Time // when
	trouble bool      // OnTrouble has heard of an error, and of no end of it
	last    error     // of Close
}

// Open opens the log. Close ends it, and its goroutine.
func Open(c Config) (*Log, error) {
	if c.Buffer == 0 {
		c.Buffer = 4 << 20
	}
	l := &Log{config: c, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if c.Out == nil {
		if err := l.open(); err != nil {
			return nil, err
		}
	}
	go l.run()
	return l, nil
}

// Write takes lines, each with its newline. It copies them.
func (l *Log) Write(lines []byte) {
	l.mu.Lock()
	first := len(l.pending) == 0
	if l.closed || len(l.pending)+len(lines) > l.config.Buffer {
		l.dropped += uint64(bytes.Count(lines, newline))
		first = true // so that it is told
	} else {
		l.pending = append(l.pending, lines...)
	}
	l.mu.Unlock()
	if first {
		l.signal()
	}
}

var newline = []byte{'\n'}

// Reopen has the file that Path leads to now opened: what is written from now on is there.
func (l *Log) Reopen() {
	l.mu.Lock()
	l.reopen = true
	l.mu.Unlock()
	l.signal()
}

// Dropped returns how many lines are lost.
func (l *Log) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// Close writes what waits, and closes the file. What is written later is dropped.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.signal()
	<-l.done
	return l.last
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default: // run will see it
	}
}

// run writes until Close.
func (l *Log) run() {
	defer close(l.done)
	var lines []byte // the other half of pending
	for closed := false; !closed; {
		<-l.wake
		l.mu.Lock()
		closed = l.closed
		l.mu.Unlock()
		if !closed { // Close need not wait for others
			time.Sleep(gather)
		}
		l.mu.Lock()
		lines, l.pending = l.pending, lines[:0]
		reopen := l.reopen
		l.reopen, closed = false, l.closed
		l.mu.Unlock()
		if reopen {
			l.shut()
		}
		err := l.write(lines)
		l.tell(err, closed)
		if cap(lines) > 256<<10 && len(lines) < cap(lines)/8 {
			lines = nil // a busy time is over
		}
		if closed {
			l.last = errors.Join(err, l.shut())
		}
	}
}

// write writes lines, as many to a file as it may have.
func (l *Log) write(lines []byte) (err error) {
	for len(lines) > 0 || l.config.Out == nil && l.file == nil {
		n := len(lines)
		if l.config.Out == nil {
			if err := l.ensure(); err != nil {
				l.lose(lines)
				return err
			}
			n = l.room(lines)
			if n == 0 && len(lines) > 0 {
				if err = l.rotate(); err == nil {
					continue
				}
				n = len(lines) // it grows, then
			}
		}
		if err := l.put(lines[:n]); err != nil {
			l.lose(lines[n:])
			return err
		}
		lines = lines[n:]
	}
	return err
}

// room returns how many bytes of lines the file is to take; one line in any case if it is empty.
func (l *Log) room(lines []byte) int {
	room := l.config.MaxSize - l.size
	if l.config.MaxSize == 0 || int64(len(lines)) <= room {
		return len(lines)
	}
	n := bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
	if n == 0 && l.size == 0 {
		n = bytes.IndexByte(lines, '\n') + 1
	}
	return n
}

// put writes lines. What of them does not get there is lost and counted.
func (l *Log) put(lines []byte) error {
	out := l.config.Out
	if out == nil {
		out = l.file
	}
	if l.torn {
		if _, err := out.Write(newline); err != nil {
			l.lose(lines)
			return err
		}
		l.size++
		l.torn = false
	}
	n, err := out.Write(lines)
	l.size += int64(n)
	if err == nil {
		return nil
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	l.lose(lines[whole:])
	if whole < n {
		rest := int64(n - whole)
		l.torn = l.file == nil || l.file.Truncate(l.size-rest) != nil
		if !l.torn {
			l.size -= rest
		}
	}
	return err
}

// lose counts lines that could not be written.
func (l *Log) lose(lines []byte) {
	l.mu.Lock()
	l.dropped += uint64(bytes.Count(lines, newline))
	l.mu.Unlock()
}

// tell says what has changed, sooner or later.
func (l *Log) tell(err error, closing bool) {
	l.mu.Lock()
	n := l.dropped - l.told
	l.mu.Unlock()
	if err == nil && n > 0 && !l.trouble {
		err = errBehind
	}
	if err == nil && !l.trouble || l.config.OnTrouble == nil || time.Since(l.toldAt) < tellEvery && !closing {
		return
	}
	l.told += n
	l.toldAt, l.trouble = time.Now(), err != nil
	l.config.OnTrouble(n, err)
}

// ensure opens the file that Path leads to, unless it is the one that is open.
func (l *Log) ensure() error {
	if l.file != nil {
		have, err := l.file.Stat()
		if there, thereErr := os.Stat(l.config.Path); err == nil && thereErr == nil && os.SameFile(have, there) {
			l.size = have.Size() // somebody may have truncated it
			return nil
		}
		l.shut()
	}
	return l.open()
}

func (l *Log) open() error {
	if err := os.MkdirAll(filepath.Dir(l.config.Path), folderMode); err != nil {
		return fmt.Errorf("access log: %w", err)
	}
	f, err := os.OpenFile(l.config.Path, os.O_CREATE|os.O_APPEND|os.O_RDWR, fileMode)
	if err != nil {
		return fmt.Errorf("access log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("access log: %w", err)
	}
	l.file, l.size = f, info.Size()
	end := []byte{'\n'}
	if info.Mode().IsRegular() && l.size > 0 {
		f.ReadAt(end, l.size-1)
	}
	l.torn = end[0] != '\n' // whoever wrote it was stopped in the middle
	return nil
}

// shut closes the file.
func (l *Log) shut() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// rotate moves the files on and begins a new one.
func (l *Log) rotate() error {
	l.shut()
	name := func(i int) string {
		if i == 0 {
			return l.config.Path
		}
		return l.config.Path + "." + strconv.Itoa(i)
	}
	err := os.Remove(name(l.config.Keep))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for i := l.config.Keep - 1; i >= 0 && err == nil; i-- {
		if err = os.Rename(name(i), name(i+1)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, l.open())
}
