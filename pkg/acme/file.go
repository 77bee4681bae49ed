package acme

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"culvert.dev/pkg/atomicfile"
)

// Files is a Store in a folder, of one process: its locks are in memory, so they are
// gone when the process is.
type Files struct {
	certmagic.FileStorage

	mu    sync.Mutex
	locks map[string]chan struct{} // closed when the lock is free
}

// OpenFiles opens a folder, which it makes with mode 0700.
func OpenFiles(dir string) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Files{FileStorage: certmagic.FileStorage{Path: dir}, locks: make(map[string]chan struct{})}, nil
}

// Store replaces a file as a whole. What FileStorage renames is not sure to be there
// after a crash until its folder is written too.
func (f *Files) Store(ctx context.Context, key string, value []byte) error {
	if err := f.FileStorage.Store(ctx, key, value); err != nil {
		return err
	}
	dir := filepath.Dir(f.Filename(key))
	for {
		if err := atomicfile.SyncDir(dir); err != nil {
			return err
		}
		if dir == f.Path || len(dir) <= len(f.Path) || !strings.HasPrefix(dir, f.Path) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// Lock waits for a lock.
func (f *Files) Lock(ctx context.Context, name string) error {
	for {
		f.mu.Lock()
		held := f.locks[name]
		if held == nil {
			f.locks[name] = make(chan struct{})
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryLock takes a lock that is free.
func (f *Files) TryLock(_ context.Context, name string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locks[name] != nil {
		return false, nil
	}
	f.locks[name] = make(chan struct{})
	return true, nil
}

// Unlock gives a lock back.
func (f *Files) Unlock(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if held := f.locks[name]; held != nil {
		close(held)
		delete(f.locks, name)
	}
	return nil
}

// cached is a Store across a network, and copies of its certificates on this machine
// for when it is not there.
type cached struct {
	certmagic.Storage
	local certmagic.Storage
	log   *slog.Logger

	mu   sync.Mutex
	down time.Time // it did not answer then
}

// downTime is how long a Store that does not answer is not asked for certificates.
const downTime = 10 * time.Second

func isCopied(key string) bool { return strings.HasPrefix(key, "certificates/") }

// Load asks the Store, and the copies if it does not answer.
func (c *cached) Load(ctx context.Context, key string) ([]byte, error) {
	if !isCopied(key) {
		return c.Storage.Load(ctx, key)
	}
	c.mu.Lock()
	isDown := time.Since(c.down) < downTime
	c.mu.Unlock()
	if isDown {
		if b, err := c.local.Load(ctx, key); err == nil {
			return b, nil
		}
	}
	b, err := c.Storage.Load(ctx, key)
	switch {
	case err == nil:
		if old, localErr := c.local.Load(ctx, key); localErr != nil || string(old) != string(b) {
			c.copied(c.local.Store(ctx, key, b))
		}
		return b, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	c.mu.Lock()
	c.down = time.Now()
	c.mu.Unlock()
	if copied, localErr := c.local.Load(ctx, key); localErr == nil {
		c.log.Warn("certificates: the store does not answer, this machine's copy is used", "key", key, "err", err)
		return copied, nil
	}
	return nil, err
}

// Store writes both.
func (c *cached) Store(ctx context.Context, key string, value []byte) error {
	err := c.Storage.Store(ctx, key, value)
	if err == nil && isCopied(key) {
		c.copied(c.local.Store(ctx, key, value))
	}
	return err
}

// Delete deletes both.
func (c *cached) Delete(ctx context.Context, key string) error {
	if isCopied(key) {
		c.copied(c.local.Delete(ctx, key))
	}
	return c.Storage.Delete(ctx, key)
}

// TryLock implements certmagic.TryLocker.
func (c *cached) TryLock(ctx context.Context, name string) (bool, error) {
	return c.Storage.(certmagic.TryLocker).TryLock(ctx, name)
}

func (c *cached) copied(err error) {
	if err != nil {
		c.log.Warn("certificates: this machine's copy", "err", err)
	}
}
