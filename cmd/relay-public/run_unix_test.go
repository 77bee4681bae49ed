//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// SIGHUP opens the access log anew, also when the configuration cannot be read.
func TestReopenAccessLog(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "access.log")
	in := start(t, dir, basic+"\n[access_log]\nfile = \""+file+"\"\n")
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "public.toml"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	in.await("reload: the old configuration stays")
	in.stop()
	for range in.lines {
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
