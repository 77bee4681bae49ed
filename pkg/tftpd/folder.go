package tftpd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
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

// Folder is a Store of the files below a folder. Whatever touches a disk runs on the pool of the loop (evloop.Loop.Go). One Folder may be used on any
// number of loops.
type Folder struct {
	Root *os.Root // what is served; nothing outside of it can be reached, by symbolic links neither. Open while the Folder is used

	// Write says what may be written: nothing (""), files that are not there yet ("new"), or those that are, too ("replace").
	Write string

	// MaxSize bounds a file that is written, in bytes. 0: no bound.
	MaxSize int64

	// IgnoreCase looks for a name that is not there as it is written in any case.
	IgnoreCase bool

	// Log hears of what the owner of the folder has to mend: files that may not be read, a full disk. nil: slog.Default.
	Log *slog.Logger

	names  listings     // of IgnoreCase
	tidied atomic.Int64 // when leftovers were looked for, in Unix nanoseconds
	told   atomic.Int64 // when Log was, in Unix nanoseconds
}

const (
	tempPrefix = ".culvert-"      // of the names of files that are being written
	chunk      = 128 << 10        // bytes that are read from a disk at a time
	tellEvery  = 10 * time.Second // for Log
)

// Open opens a file.
func (f *Folder) Open(l *evloop.Loop, r *Open, done func(*File, error)) (cancel func()) {
	if r.Write && f.Write != "" && once(&f.tidied, leftover) {
		onPool(l, f.tidy, func() {}, nil)
	}
	o := &folderOpen{folder: f, loop: l, ask: r}
	onPool(l, o.work, func() {
		if o.cancelled {
			onPool(l, o.drop, func() {}, nil)
			return
		}
		o.give(done)
	}, o.drop)
	return func() { o.cancelled = true }
}

// folderOpen is one call of Open. It is the pool's until work has returned.
type folderOpen struct {
	folder *Folder
	loop   *evloop.Loop
	ask    *Open

	cancelled bool // of the loop

	err   error
	reply *File
	read  *folderRead
	write *folderWrite
}

// work opens what is asked for.
func (o *folderOpen) work() {
	f, r := o.folder, o.ask
	name, err := f.check(r)
	switch {
	case err != nil:
	case r.Write:
		o.write, err = f.create(name, r)
	default:
		o.read, o.reply, err = f.open(name, r)
	}
	if err != nil {
		o.err = f.fault(err, r)
	}
}

// give hands over what work has opened.
func (o *folderOpen) give(done func(*File, error)) {
	switch {
	case o.err != nil:
		done(nil, o.err)
	case o.write != nil:
		o.write.loop = o.loop
		done(&File{End: o.write, Size: -1}, nil)
	case o.read == nil: // the reader has it
		done(o.reply, nil)
	default:
		o.read.feed = feed{loop: o.loop, more: o.read.fetch, free: o.read.close}
		o.reply.End = o.read
		done(o.reply, nil)
	}
}

// drop frees what work has opened, since nobody wants it.
func (o *folderOpen) drop() {
	switch {
	case o.read != nil:
		o.read.file.Close()
	case o.write != nil:
		o.write.temp.discard()
	}
}

// check returns the name in the folder. It may read folders.
func (f *Folder) check(r *Open) (string, error) {
	// Who calls has done that, too. But this is what stands between the network and the disk.
	name, err := tftp.CleanName(r.Name)
	if err != nil {
		return "", err
	}
	if name != r.Name || !filepath.IsLocal(filepath.FromSlash(name)) || !plausible(name) || isTemp(name) {
		return "", errAccess
	}
	if r.Write {
		switch {
		case f.Write == "":
			return "", errAccess
		case f.MaxSize > 0 && r.Size > f.MaxSize:
			return "", errTooLarge
		}
	}
	if f.IgnoreCase {
		return f.lookUp(name)
	}
	return name, nil
}

// isTemp reports whether the last element of a name is for files that are being written. There are disks that do not tell cases apart.
func isTemp(name string) bool {
	base := path.Base(name)
	return len(base) >= len(tempPrefix) && strings.EqualFold(base[:len(tempPrefix)], tempPrefix)
}

// open opens a file to be read. It returns no folderRead if the reader has the file already.
func (f *Folder) open(name string, r *Open) (*folderRead, *File, error) {
	// Opening a device may do something, so that is not tried. What has become a pipe meanwhile does not block.
	info, err := f.Root.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errAccess
	}
	file, err := f.Root.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, nil, err
	}
	if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
		err = errAccess
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	reply := &File{Size: info.Size()}
	var settled bool
	reply.Version, settled = version(info, time.Now())
	if r.Mode == tftp.NetASCII {
		reply.Size = -1
	}
	if settled && r.Have == reply.Version {
		file.Close()
		reply.Same = true
		return nil, reply, nil
	}
	return &folderRead{folder: f, ask: r, file: file, info: info}, reply, nil
}

// version tells contents of a file apart. A file that was changed a moment ago may change again and keep its time. So it is not settled
// that what it has now is what it has later, and its version is another one as soon as it is.
func version(info fs.FileInfo, now time.Time) (v string, settled bool) {
	modified := info.ModTime()
	step := 50 * time.Millisecond // of the times of today's systems, amply
	if modified.Nanosecond() == 0 {
		step = 2 * time.Second // of FAT's
	}
	v = fmt.Sprintf("%x-%x-%x", info.Size(), modified.UnixNano(), inode(info))
	if now.Sub(modified).Abs() < step {
		return v + "-young", false
	}
	return v, true
}

// folderRead is the End of a file that is read.
type folderRead struct {
	feed
	folder *Folder
	ask    *Open
	busy   bool // a read is under way

	// Of the pool while a read is under way.
	file *os.File
	info fs.FileInfo // when it was opened
	off  int64       // read up to here
	bufs [2][]byte   // one to read into while the other one is being presented
	turn int
	text tftp.EncodeNetASCII
	out  []byte // what was read
	err  error
}

// fetch reads the next piece.
func (r *folderRead) fetch() {
	r.busy = true
	onPool(r.loop, r.read, func() {
		r.busy = false
		switch {
		case r.dead:
			r.close()
		case r.err != nil:
			r.fail(r.err)
		default:
			r.put(r.out, r.off == r.info.Size())
		}
	}, func() { r.file.Close() })
}

// read reads one piece, and makes sure that the file is still the one that was opened.
func (r *folderRead) read() {
	size := int(min(chunk, r.info.Size()-r.off))
	r.turn ^= 1
	buf := r.bufs[r.turn]
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	r.bufs[r.turn] = buf
	n := 0
	for n < size && r.err == nil {
		var m int
		m, r.err = r.file.ReadAt(buf[n:], r.off+int64(n))
		n += m
	}
	if n == size {
		r.err = nil // an EOF with the last byte
	}
	now, err := r.file.Stat()
	switch {
	case r.err == io.EOF, err == nil && (now.Size() != r.info.Size() || !now.ModTime().Equal(r.info.ModTime())):
		r.err = fmt.Errorf("file %q: it was changed while it was being read", r.ask.Name)
	case cmp.Or(r.err, err) != nil:
		r.err = r.folder.fault(cmp.Or(r.err, err), r.ask)
	}
	r.off += int64(n)
	r.out = buf
	if r.ask.Mode == tftp.NetASCII {
		r.out = r.text.Append(nil, buf)
	}
}

// close closes the file, when no read is under way.
func (r *folderRead) close() {
	if !r.busy {
		r.busy = true
		onPool(r.loop, func() { r.file.Close() }, func() {}, nil)
	}
}

// Errors of files, for the client to read: they tell nothing about where the files are.
var (
	errNotFound = &tftp.Error{Code: tftp.CodeNotFound, Text: "There is no such file."}
	errAccess   = &tftp.Error{Code: tftp.CodeAccess, Text: "Access to this file is not allowed."}
	errExists   = &tftp.Error{Code: tftp.CodeExists, Text: "The file exists already."}
	errDiskFull = &tftp.Error{Code: tftp.CodeDiskFull, Text: "The disk is full."}
)

// fault makes an error of a disk one for the client, and tells Log what somebody should mend.
func (f *Folder) fault(err error, r *Open) error {
	if e, ok := errors.AsType[*tftp.Error](err); ok {
		return e
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return errNotFound
	case errors.Is(err, fs.ErrExist):
		return errExists
	case isFull(err):
		f.tell("the disk of a folder is full: make room", err, r)
		return errDiskFull
	case errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EILSEQ):
		if r.Write {
			return errAccess // no name of this system's
		}
		return errNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		f.tell("a file of a folder may not be touched by the relay: change its permissions, or those of the folder", err, r)
		return errAccess
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ETXTBSY):
		return errAccess
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Err != fs.ErrClosed {
		if _, system := e.Err.(syscall.Errno); !system {
			return errAccess // by os.Root: the path leaves it
		}
	}
	return fmt.Errorf("file %q: %w", r.Name, err)
}

// tell logs, a few times a minute at the most: those who ask decide how often it happens.
func (f *Folder) tell(what string, err error, r *Open) {
	if once(&f.told, tellEvery) {
		cmp.Or(f.Log, slog.Default()).Warn(what, "folder", f.Root.Name(), "file", r.Name, "visitor", r.Visitor, "error", err)
	}
}

// once reports whether it is time again: not within every of the last time that it was.
func once(last *atomic.Int64, every time.Duration) bool {
	was, now := last.Load(), time.Now().UnixNano()
	return now-was >= int64(every) && last.CompareAndSwap(was, now)
}

// onPool runs work on the pool of l, then done on l; if l has ended meanwhile, lost instead of it, on the pool.
func onPool(l *evloop.Loop, work, done, lost func()) {
	l.Go(func() {
		work()
		if !l.Post(done) && lost != nil {
			lost()
		}
	}, func() {})
}
