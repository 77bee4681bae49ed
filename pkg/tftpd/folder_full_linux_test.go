package tftpd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"culvert.dev/pkg/tftp"
)

// On a full disk the old file stays, the client hears why, the log, too, and what was written makes room again.
func TestFolderFullDisk(t *testing.T) {
	f, dir := testFolder(t, nil)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("a small disk needs root: ", err)
	}
	defer syscall.Unmount(dir, 0)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var logged bytes.Buffer
	f.Root, f.Log, f.Write = root, slogTo(&logged), "replace"
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := storeLoop(t)
	for range 3 {
		for _, piece := range []int{512, 100000} {
			saved, err := storePut(t, l, f, &Open{Name: "file", Size: -1}, make([]byte, 1<<20), piece)
			wantCode(t, "written", err, tftp.CodeDiskFull, dir)
			if saved {
				t.Error("saved on a full disk")
			}
			wantFiles(t, "full", dir, "file", "old")
		}
	}
	if n := strings.Count(logged.String(), "make room"); n != 1 {
		t.Errorf("logged %d times: %s", n, &logged)
	}
	content := make([]byte, 200<<10)
	if saved, err := storePut(t, l, f, &Open{Name: "file", Size: -1}, content, 512); !saved {
		t.Errorf("what has room: %v", err)
	}
	// There is room for one of both only: the old one stays until the new one is whole.
	_, err = storePut(t, l, f, &Open{Name: "file", Size: -1}, content[:100<<10], 512)
	wantCode(t, "beside the old one", err, tftp.CodeDiskFull)
	wantFiles(t, "full", dir, "file", string(content))
	// A disk that is read only.
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skip(err)
	}
	for _, f.Write = range []string{"new", "replace"} {
		_, err = storePut(t, l, f, &Open{Name: "new", Size: -1}, nil, 512)
		wantCode(t, "read only", err, tftp.CodeAccess)
	}
	_, err = storePut(t, l, f, &Open{Name: "file", Size: -1}, nil, 512)
	wantCode(t, "read only", err, tftp.CodeAccess)
}
