package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Those who change a file under its lock lose nothing of what others have written.
func TestLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			unlock, err := Lock(file)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			b, err := os.ReadFile(file)
			if err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
			if err := Write(file, fmt.Appendf(b, "%d\n", i), 0o600); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(file)
	if got := strings.Count(string(b), "\n"); err != nil || got != n {
		t.Errorf("%d lines, want %d: %v", got, n, err)
	}
}
