package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// flushed waits until what was written is where it belongs. In a bubble of synctest.
func flushed() {
	time.Sleep(2 * gather)
	synctest.Wait()
}

func open(t *testing.T, c Config) *Log {
	t.Helper()
	l, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func want(t *testing.T, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Errorf("%s: %q, %v, want %q", filepath.Base(path), b, err, text)
	}
}

func wantNone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want none", filepath.Base(path), err)
	}
}

// Files are filled, moved on, and in the end removed; no line is divided.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "logs", "access.log")
		l := open(t, Config{Path: path, MaxSize: 8, Keep: 2})
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		l.Write([]byte("one\n"))
		flushed()
		want(t, path, "one\n")
		l.Write([]byte("two\n"))
		l.Write([]byte("three\nfour\n"))
		flushed()
		want(t, path+".2", "one\ntwo\n")
		want(t, path+".1", "three\n")
		want(t, path, "four\n")
		l.Write([]byte("longer than a file may be\nfive\nsix\n"))
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		want(t, path+".2", "longer than a file may be\n")
		want(t, path+".1", "five\n")
		want(t, path, "six\n")
		wantNone(t, path+".3")

		// A log that is opened again goes on where it was.
		l = open(t, Config{Path: path, MaxSize: 8})
		l.Write([]byte("!\n"))
		flushed()
		want(t, path, "six\n!\n")
		l.Write([]byte("none is kept\n"))
		l.Close()
		want(t, path, "none is kept\n")
		if l.Dropped() != 0 {
			t.Errorf("%d lines dropped", l.Dropped())
		}
	})
}

// Whoever moves, truncates or deletes the file gets a new one, told or not.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "logs")
		path := filepath.Join(dir, "access.log")
		l := open(t, Config{Path: path})
		l.Write([]byte("one\n"))
		flushed()

		// logrotate, with a signal: the new file is there at once.
		os.Rename(path, path+".1")
		l.Reopen()
		flushed()
		want(t, path, "")
		l.Write([]byte("two\n"))
		flushed()
		want(t, path+".1", "one\n")
		want(t, path, "two\n")

		// And without one, and with a file that it has made.
		os.Rename(path, path+".2")
		os.WriteFile(path, nil, 0o600)
		l.Write([]byte("three\n"))
		flushed()
		want(t, path+".2", "two\n")
		want(t, path, "three\n")

		// copytruncate leaves no hole.
		os.Truncate(path, 0)
		l.Write([]byte("four\n"))
		flushed()
		want(t, path, "four\n")

		os.RemoveAll(dir)
		l.Write([]byte("five\n"))
		flushed()
		want(t, path, "five\n")
		l.Close()
		if l.Dropped() != 0 {
			t.Errorf("%d lines dropped", l.Dropped())
		}
	})
}

// A process that died in the middle of a line leaves it behind, alone.
func TestTornByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	os.WriteFile(path, []byte("one\ntw"), 0o600)
	l := open(t, Config{Path: path})
	l.Write([]byte("three\n"))
	l.Close()
	want(t, path, "one\ntw\nthree\n")
}

// device is an output that takes so many bytes, or waits.
type device struct {
	bytes.Buffer
	room  int
	stuck chan struct{} // nil: it does not wait
}

func (d *device) Write(b []byte) (int, error) {
	if d.stuck != nil {
		<-d.stuck
	}
	n := min(d.room, len(b))
	d.room -= n
	d.Buffer.Write(b[:n])
	if n < len(b) {
		return n, errors.New("device full")
	}
	return n, nil
}

// An output that is full costs the lines that come then, which are counted and told of, and tears none.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		d := &device{room: 6}
		l := open(t, Config{Out: d, OnTrouble: func(n uint64, err error) { told = append(told, fmt.Sprint(n, " ", err)) }})
		l.Write([]byte("one\ntwo\nthree\n"))
		flushed()
		l.Write([]byte("four\n"))
		flushed()
		d.room = 1000
		time.Sleep(tellEvery)
		l.Write([]byte("five\n"))
		flushed()
		l.Write([]byte("six\n"))
		l.Close()
		if got := d.String(); got != "one\ntw\nfive\nsix\n" {
			t.Errorf("written: %q", got)
		}
		if got := strings.Join(told, ", "); got != "2 device full, 1 <nil>" || l.Dropped() != 3 {
			t.Errorf("told: %s; dropped: %d", got, l.Dropped())
		}
	})
}

// Whoever writes does not wait for an output that does; what may wait is bounded.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		d := &device{room: 1 << 20, stuck: make(chan struct{})}
		l := open(t, Config{Out: d, Buffer: 100, OnTrouble: func(n uint64, err error) { told = append(told, fmt.Sprint(n, " ", err)) }})
		l.Write([]byte("first\n"))
		flushed()
		for range 30 {
			l.Write([]byte("123456789\n")) // 10 fit
		}
		if n := l.Dropped(); n != 20 {
			t.Errorf("%d lines dropped", n)
		}
		close(d.stuck)
		flushed()
		l.Write([]byte("last\n"))
		l.Close()
		if got := d.String(); got != "first\n"+strings.Repeat("123456789\n", 10)+"last\n" {
			t.Errorf("written: %q", got)
		}
		if got := strings.Join(told, ", "); !strings.HasPrefix(got, "20 lines come faster than they can be written") {
			t.Errorf("told: %s", got)
		}
		l.Write([]byte("too late\n"))
		if n := l.Dropped(); n != 21 {
			t.Errorf("%d lines dropped", n)
		}
	})
}

// Lines of many producers are all there, each whole, over all files.
func TestProducers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, Config{Path: path, MaxSize: 10 << 10, Keep: 1000})
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			for i := range 500 {
				l.Write(fmt.Appendf(nil, "%d %d %s\n", p, i, strings.Repeat("x", 20)))
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	files, _ := filepath.Glob(path + "*")
	next := make(map[int]int)
	var all []string
	for i := len(files) - 1; i > 0; i-- {
		all = append(all, fmt.Sprint(path, ".", i))
	}
	for _, name := range append(all, path) {
		b, err := os.ReadFile(name)
		if err != nil || len(b) > 10<<10 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		for line := range strings.Lines(string(b)) {
			var p, i int
			var x string
			if n, err := fmt.Sscanf(line, "%d %d %s\n", &p, &i, &x); n != 3 || err != nil || len(x) != 20 || next[p] != i {
				t.Fatalf("%s: line %q, %v, want %d of %d", name, line, err, next[p], p)
			}
			next[p]++
		}
	}
	for p := range 8 {
		if next[p] != 500 {
			t.Errorf("%d lines of %d", next[p], p)
		}
	}
	if len(files) < 8 || l.Dropped() != 0 {
		t.Errorf("%d files, %d dropped", len(files), l.Dropped())
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	for _, path := range []string{dir, filepath.Join(dir, "file", "access.log")} {
		if _, err := Open(Config{Path: path}); err == nil || !strings.HasPrefix(err.Error(), "access log: ") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
