package tftpd

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

const (
	highMark = 256 << 10 // of an End: bytes that wait for the disk
	lowMark  = highMark / 4

	syncEvery = 16 << 20 // bytes that the last sync has to wait for at most: clients give up while they wait for it

	maxLinks = 8              // symbolic links from a name to the file that is replaced
	leftover = 24 * time.Hour // age at which nobody is writing a file any more
	tidyMost = 100000         // names that are looked at for leftovers
)

// folderWrite is the End of a file that is written.
type folderWrite struct {
	loop   *evloop.Loop
	folder *Folder
	ask    *Open

	// Of loop.
	handler   evloop.Handler
	queue     []byte // to be written
	spare     []byte // the next queue
	writing   int    // bytes that are being written
	busy      bool   // temp is the pool's
	due       bool   // kick comes at the end of the turn
	wantDrain bool
	paused    bool
	complete  bool // CloseWrite was called
	saving    bool // all is written, or being written
	saved     bool // it is at its place
	saidEOF   bool
	closing   bool // Close was called after CloseWrite
	dead      bool
	err       error

	dropped atomic.Bool // dead, for the pool
	temp    tempFile    // of the pool while busy, else of loop
}

func (w *folderWrite) SetHandler(h evloop.Handler) {
	w.handler = h
	w.wantServe()
}

func (w *folderWrite) Pause() { w.paused = true }

func (w *folderWrite) Resume() {
	w.paused = false
	w.wantServe()
}

// wantServe calls serve in the next turn if it has something to do.
func (w *folderWrite) wantServe() {
	if w.saved && !w.dead {
		w.loop.Post(w.serve)
	}
}

// serve says that the file is safe. Then both directions are done.
func (w *folderWrite) serve() {
	switch {
	case !w.saved || w.dead || w.saidEOF:
	case w.closing:
		w.die(nil)
	case !w.paused && w.handler != nil:
		w.saidEOF = true
		w.handler.OnEOF()
		w.die(nil)
	}
}

func (w *folderWrite) HighMark() int { return highMark }
func (w *folderWrite) Pending() int  { return len(w.queue) + w.writing }

func (w *folderWrite) Write(b []byte) {
	if w.complete || w.dead {
		return
	}
	w.queue = append(w.queue, b...)
	w.wantDrain = w.wantDrain || w.Pending() > highMark
	w.wantKick()
}

func (w *folderWrite) CloseWrite() {
	w.complete = true
	w.wantKick()
}

// Close gives the file up, or, after CloseWrite, ends w as soon as the file is safe.
func (w *folderWrite) Close() {
	if !w.complete {
		w.die(evloop.ErrClosed)
		return
	}
	w.closing = true
	w.wantServe()
}

func (w *folderWrite) Abort(err error) { w.die(cmp.Or(err, evloop.ErrClosed)) }

// die ends w, and removes what is not at its place. OnClose comes in the next turn.
func (w *folderWrite) die(err error) {
	if w.dead {
		return
	}
	w.dead, w.err, w.queue, w.spare = true, err, nil, nil
	w.dropped.Store(true)
	if !w.busy && !w.saved {
		w.discard()
	}
	w.loop.Post(func() {
		if h := w.handler; h != nil {
			w.handler = nil
			h.OnClose(w.err)
		}
	})
}

func (w *folderWrite) discard() {
	w.busy = true
	onPool(w.loop, w.temp.discard, func() {}, nil)
}

// wantKick has what was written in this turn go to the disk together.
func (w *folderWrite) wantKick() {
	if !w.due && !w.busy && !w.dead {
		w.due = true
		w.loop.AfterTurn(w.kick)
	}
}

// kick has the pool do what comes next, one thing at a time.
func (w *folderWrite) kick() {
	w.due = false
	switch {
	case w.busy || w.dead:
	case len(w.queue) > 0:
		b := w.queue
		w.queue, w.spare, w.writing = w.spare[:0], nil, len(b)
		w.job(func() error { return w.temp.write(b) }, func() {
			w.spare, w.writing = b, 0
			if w.wantDrain && w.Pending() <= lowMark {
				w.wantDrain = false
				if w.handler != nil {
					w.handler.OnDrain()
				}
			}
		})
	case w.complete && !w.saving:
		w.saving = true
		w.job(func() error { return w.temp.save(&w.dropped) }, func() {
			w.saved = true
			w.serve()
		})
	}
}

// job runs work on the pool, then done, and what comes next.
func (w *folderWrite) job(work func() error, done func()) {
	w.busy = true
	var err error
	onPool(w.loop, func() {
		if err = work(); err != nil {
			w.temp.discard()
			err = w.folder.fault(err, w.ask)
		}
	}, func() {
		w.busy = false
		switch {
		case w.dead:
			w.discard()
		case err != nil:
			w.die(err)
		default:
			done()
			w.kick()
		}
	}, w.temp.discard)
}

// create opens a file to be written: under another name beside the one that it will get.
func (f *Folder) create(name string, r *Open) (*folderWrite, error) {
	t := tempFile{maxSize: f.MaxSize, netascii: r.Mode == tftp.NetASCII, replace: f.Write == "replace"}
	var err error
	if t.dir, t.base, t.old, err = f.place(name); err != nil {
		return nil, err
	}
	// While it is being written, it is open to nobody who could not read the old file.
	perm := fs.FileMode(0o644)
	if t.old != nil {
		perm = 0o600
	}
	t.name = tempPrefix + strings.ToLower(rand.Text())
	if t.file, err = t.dir.OpenFile(t.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm); err != nil {
		t.dir.Close()
		return nil, err
	}
	t.link = t.dir.Link
	return &folderWrite{folder: f, ask: r, temp: t}, nil
}

// place returns the folder and the name in it where a file is to be, and what is there now, or nil. Whatever happens to the folders above, the
// folder remains the same.
func (f *Folder) place(name string) (dir *os.Root, base string, old fs.FileInfo, err error) {
	for range maxLinks {
		above := "."
		base = name
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			above, base = name[:i], name[i+1:] // not path.Split: ".." behind a symbolic link is for os.Root to understand
		}
		if isTemp(base) { // by a symbolic link
			return nil, "", nil, errAccess
		}
		if dir, err = f.Root.OpenRoot(above + "/."); err != nil { // the dot keeps it from waiting at a pipe
			return nil, "", nil, err
		}
		old, err = dir.Lstat(base)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return dir, base, nil, nil
		case err != nil:
		case old.IsDir():
			err = errAccess
		case f.Write != "replace":
			err = errExists
		case old.Mode().IsRegular():
			if err = writable(dir, base, old); err == nil {
				return dir, base, old, nil
			}
		case old.Mode()&fs.ModeSymlink == 0:
			err = errAccess
		default:
			var to string
			if to, err = dir.Readlink(base); err == nil && filepath.IsAbs(to) {
				err = errAccess
			}
			name = above + "/" + filepath.ToSlash(to)
		}
		dir.Close()
		if err != nil {
			return nil, "", nil, err
		}
	}
	return nil, "", nil, syscall.ELOOP
}

// tempFile is a file that is being written, under a name that nobody else uses. Its methods block.
type tempFile struct {
	dir      *os.Root    // where it will be
	base     string      // what it will be called
	old      fs.FileInfo // what is called that when it is begun, or nil
	replace  bool        // what is called that when it is finished
	name     string      // "" when it is at its place, or gone
	file     *os.File
	link     func(name, to string) error
	maxSize  int64
	netascii bool

	size   int64
	synced int64 // of size
	text   tftp.DecodeNetASCII
	buf    []byte // decoded
}

// write appends b.
func (t *tempFile) write(b []byte) error {
	if t.netascii {
		t.buf = t.text.Append(t.buf[:0], b)
		b = t.buf
	}
	return t.append(b)
}

func (t *tempFile) append(b []byte) error {
	t.size += int64(len(b))
	if t.maxSize > 0 && t.size > t.maxSize {
		return errTooLarge
	}
	if _, err := t.file.Write(b); err != nil {
		return err
	}
	if t.size-t.synced < syncEvery {
		return nil
	}
	t.synced = t.size
	return t.sync()
}

// sync has the disk take what was written. Some file systems cannot, and say so.
func (t *tempFile) sync() error {
	if err := t.file.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// save puts the file at its place, for good, unless it was given up meanwhile.
func (t *tempFile) save(dropped *atomic.Bool) error {
	if t.netascii {
		if err := t.append(t.text.End(nil)); err != nil {
			return err
		}
	}
	if t.old != nil {
		// A file system without permissions may refuse. Otherwise the file is ours, so that it cannot.
		keepOwner(t.file, t.old)
		t.file.Chmod(t.old.Mode().Perm())
	}
	if err := t.sync(); err != nil {
		return err
	}
	if err := t.file.Close(); err != nil {
		return err
	}
	if dropped.Load() {
		return evloop.ErrClosed
	}
	if err := t.move(); err != nil {
		return err
	}
	t.name = ""
	if err := syncFolder(t.dir); err != nil {
		return fmt.Errorf("it is at its place, but may not stay there: %w", err)
	}
	return t.dir.Close()
}

// move gives the file its name.
func (t *tempFile) move() error {
	if t.replace {
		return t.dir.Rename(t.name, t.base)
	}
	err := t.link(t.name, t.base) // fails if there is one, as no rename does everywhere
	switch {
	case err == nil:
		t.dir.Remove(t.name) // if this fails, tidy will
		return nil
	case errors.Is(err, fs.ErrExist):
		return err
	}
	// Here are no links. So the name is taken by an empty file, which then is replaced.
	taken, err := t.dir.OpenFile(t.base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	taken.Close()
	if err = t.dir.Rename(t.name, t.base); err != nil {
		t.dir.Remove(t.base)
	}
	return err
}

// discard removes the file unless it is at its place.
func (t *tempFile) discard() {
	t.file.Close()
	if t.name != "" {
		t.dir.Remove(t.name)
		t.name = ""
	}
	t.dir.Close()
}

// tidy removes what a crash has left of files that were being written.
func (f *Folder) tidy() {
	old := time.Now().Add(-leftover)
	most := tidyMost
	for dirs := []string{"."}; len(dirs) > 0 && most > 0; dirs = dirs[1:] {
		d, err := f.Root.OpenFile(dirs[0], os.O_RDONLY|openFlags, 0)
		if err != nil {
			continue // not ours to read
		}
		for err == nil && most > 0 {
			var entries []fs.DirEntry
			entries, err = d.ReadDir(min(256, most))
			most -= len(entries)
			for _, e := range entries {
				name := path.Join(dirs[0], e.Name())
				switch {
				case e.IsDir():
					dirs = append(dirs, name)
				case e.Type().IsRegular() && isTemp(name) && len(e.Name()) == len(tempPrefix)+len(rand.Text()):
					if info, err := f.Root.Lstat(name); err == nil && info.ModTime().Before(old) {
						f.Root.Remove(name)
					}
				}
			}
		}
		d.Close()
	}
}
