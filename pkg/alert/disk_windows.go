package alert

import "golang.org/x/sys/windows"

// Disk returns how many bytes of the volume of a folder are free for this user, and how many there are.
func Disk(folder string) (free, total uint64, err error) {
	name, err := windows.UTF16PtrFromString(folder)
	if err != nil {
		return 0, 0, err
	}
	err = windows.GetDiskFreeSpaceEx(name, &free, &total, nil)
	return free, total, err
}
