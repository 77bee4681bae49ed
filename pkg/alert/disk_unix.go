//go:build unix

package alert

import "golang.org/x/sys/unix"

// Disk returns how many bytes of the filesystem of a folder are free, for whoever is not root, and how many there are.
func Disk(folder string) (free, total uint64, err error) {
	var s unix.Statfs_t
	for {
		err = unix.Statfs(folder, &s)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, 0, err
	}
	return uint64(s.Bavail) * uint64(s.Bsize), uint64(s.Blocks) * uint64(s.Bsize), nil
}
