package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"culvert.dev/pkg/atomicfile"
)

// LockFolder makes sure that one process at a time works in a folder, by a lock on the file "lock" in it, which is made
// with mode 0600. The lock ends with unlock, or with the process however it ends.
func LockFolder(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.TryLock(f); errors.Is(err, atomicfile.ErrLocked) {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		return nil, fmt.Errorf("%s is in use by another process (pid %s): stop that one, or give this one a folder of its own", dir, strings.TrimSpace(string(pid)))
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	f.Truncate(0)
	fmt.Fprintln(f, os.Getpid()) // for whoever finds it locked
	return func() { f.Close() }, nil
}
