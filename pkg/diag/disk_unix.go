//go:build linux || darwin || freebsd

package diag

import "golang.org/x/sys/unix"

func disk(path string) (Disk, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return Disk{Path: path, Size: uint64(st.Blocks) * uint64(st.Bsize), Available: uint64(st.Bavail) * uint64(st.Bsize)}, err
}
