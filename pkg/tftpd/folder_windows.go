package tftpd

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// openFlags is nothing: no name in a folder is that of a pipe.
const openFlags = 0

// plausible reports whether the system takes a name for what it looks like: dots and spaces at the end of an element are cut, and a
// colon begins the name of another stream of the same file.
func plausible(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.ContainsAny(element, `:*?"<>|`) || strings.HasSuffix(element, ".") || strings.HasSuffix(element, " ") {
			return false
		}
	}
	return true
}

func inode(fs.FileInfo) uint64 { return 0 }

func keepOwner(*os.File, fs.FileInfo) {}

// writable returns an error if a file is not ours to write.
func writable(_ *os.Root, _ string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o200 == 0 {
		return fs.ErrPermission
	}
	return nil
}

// isFull reports whether err says that there is no room.
func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) || errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED) ||
		errors.Is(err, syscall.EFBIG)
}

// syncFolder does nothing: names are in the journal, and folders cannot be synced.
func syncFolder(*os.Root) error { return nil }
