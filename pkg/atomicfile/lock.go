package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrLocked says that another process has the lock.
var ErrLocked = errors.New("locked")

// How long Lock waits for another process, and how often it looks.
const (
	lockTime = time.Minute
	lockLook = 10 * time.Millisecond
)

// Lock keeps other processes that call it from changing a file until unlock: whoever makes a new text of an old one loses nothing then of
// what they have written. It waits for them, for a minute at most. The lock is on a file of the same name with ".lock" behind it,
// which stays, and ends with the process however it ends. Where the file system has no locks there is none.
func Lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for begun := time.Now(); ; time.Sleep(lockLook) {
		if err := TryLock(f); !errors.Is(err, ErrLocked) {
			return func() { f.Close() }, nil
		}
		if time.Since(begun) > lockTime {
			f.Close()
			return nil, fmt.Errorf("%s is being changed by another process: end that one, or try again", file)
		}
	}
}
