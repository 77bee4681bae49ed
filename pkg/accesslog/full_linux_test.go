package accesslog

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// On a full disk lines are dropped, none is torn, and when there is room again they are written.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("a small disk needs root: ", err)
	}
	defer syscall.Unmount(dir, 0)
	synctest.Test(t, func(t *testing.T) {
		var told []error
		path, ballast := filepath.Join(dir, "access.log"), filepath.Join(dir, "ballast")
		l := open(t, Config{Path: path, MaxSize: 1 << 20, OnTrouble: func(_ uint64, err error) { told = append(told, err) }})
		os.WriteFile(ballast, make([]byte, 40<<10), 0o600)
		line := strings.Repeat("x", 98) + "\n"
		for range 1000 {
			l.Write([]byte(line))
		}
		flushed()
		os.Remove(ballast)
		time.Sleep(tellEvery)
		l.Write([]byte("there is room again\n"))
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(string(b), "\n")
		whole := 0
		for whole < len(lines) && lines[whole] == line {
			whole++
		}
		if whole < 100 || whole+int(l.Dropped()) != 1000 || strings.Join(lines[whole:], "") != "there is room again\n" {
			t.Errorf("%d lines whole, %d dropped, then %q", whole, l.Dropped(), lines[whole:])
		}
		if len(told) != 2 || told[0] == nil || told[1] != nil {
			t.Errorf("told: %v", told)
		}
	})
}
