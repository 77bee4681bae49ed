package tftpd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// trustTime is how long an answer of the store is good for others who ask: a rack that boots makes one question.
const trustTime = 2 * time.Second

var errNoLibrary = errors.New("the service is gone")

// A Library has the files of one Share that are being read, and those of them that a Cache keeps. It belongs to a loop.
//
// Who asks for a file while somebody else is being answered gets that answer, and who asks within 2 seconds of it, too; the store is asked
// whether it has changed since otherwise. A file whose size is known, and for which the Cache has room, crosses once for all who were given the same answer, and is
// kept if it has a version. Any other is fetched for each of them, no further ahead than wanted. A file that
// nobody reads any more stays for 3 seconds, complete or not.
//
// For an unproven address, which is a [Reader] whose Ahead was not called, 4 KiB are taken from the store, and no place in the Cache.
type Library struct {
	loop  *evloop.Loop
	store Store
	cache *Cache
	files map[key]*entry // nil: closed

	lingering []*image  // the one that was left first at the front
	woken     []*Reader // of image.notify

	kept int64 // bytes that cache has charged for; guarded by Cache.mu
}

// key is what tells files of a store apart.
type key struct {
	name string
	mode tftp.Mode
}

// entry is one file of a Library. It has at least one of its image and opening.
type entry struct {
	key     key
	image   *image    // of the version that was seen last
	checked time.Time // when the store said so
	opening *opening  // what the store is being asked
}

// opening is a question to the store, and who waits for the answer. It goes on as long as there is somebody.
type opening struct {
	lib     *Library
	entry   *entry
	open    *Open
	known   *image // held: the one whose version is open.Have
	waiters []*waiter
	live    int // of them
	cancel  func()
}

// waiter is a Read that has not been answered.
type waiter struct {
	open   *Open
	ready  func(*Reader, error) // nil: it was, or does not want it any more
	cancel func()
}

// NewLibrary makes a Library of what s has. It and its readers are used on l only. cache may be nil: nothing is shared or kept.
func NewLibrary(l *evloop.Loop, s Store, cache *Cache) *Library {
	if cache == nil {
		cache = NewCache(0)
	}
	return &Library{loop: l, store: s, cache: cache, files: make(map[key]*entry)}
}

// Read opens a file for reading and calls ready, once, maybe at once. The Library keeps o, whose Have it chooses itself. cancel gives up: ready does not come
// after it. It has no effect after ready.
func (b *Library) Read(o *Open, ready func(*Reader, error)) (cancel func()) {
	w := &waiter{open: o, ready: ready}
	if b.files == nil {
		w.answer(nil, errNoLibrary)
		return w.giveUp
	}
	k := key{o.Name, o.Mode}
	e := b.files[k]
	if e != nil && e.image != nil && b.loop.Now().Sub(e.checked) < trustTime && e.image.hold() {
		im := e.image
		b.cache.hits.Add(1)
		w.give(im)
		im.unhold()
		return w.giveUp
	}
	if e = b.files[k]; e == nil { // its image may just have been evicted
		e = &entry{key: k}
		b.files[k] = e
	}
	if e.opening == nil {
		op := &opening{lib: b, entry: e, waiters: []*waiter{w}, live: 1}
		w.cancel = op.left
		e.opening = op
		op.ask(*o)
		return w.giveUp
	}
	op := e.opening
	op.waiters = append(op.waiters, w)
	op.live++
	w.cancel = op.left
	return w.giveUp
}

// Written says that the file of that name may have changed: who asks for it from now on gets what the store has then.
func (b *Library) Written(name string) {
	for _, m := range []tftp.Mode{tftp.Octet, tftp.NetASCII} {
		if e := b.files[key{name, m}]; e != nil {
			e.checked = time.Time{}
			e.opening = nil // its answer is for those who asked before
			b.tidy(e)
		}
	}
}

// Close ends the Library: who waits for a file gets an error, and what nobody reads is freed. Readers go on to the end of
// their file as long as the store lets them; nobody else joins them, and nothing stays when they have closed.
func (b *Library) Close() {
	files := b.files
	b.files = nil
	for _, e := range files {
		if im := e.image; im != nil {
			im.left()
		}
		if op := e.opening; op != nil {
			op.end()
			for _, w := range op.waiters {
				w.answer(nil, errNoLibrary)
			}
		}
	}
}

// Kept returns the bytes of files that have a place in the Cache. From anywhere.
func (b *Library) Kept() int64 {
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	return b.kept
}

// tidy removes e if there is nothing in it.
func (b *Library) tidy(e *entry) {
	if e.image == nil && e.opening == nil && b.files[e.key] == e {
		delete(b.files, e.key)
	}
}

// ask asks the store, for o and whoever joins.
func (op *opening) ask(o Open) {
	b := op.lib
	o.Have = ""
	if im := op.entry.image; im != nil && im.version != "" && im.hold() {
		op.known, o.Have = im, im.version
		b.cache.validations.Add(1)
	}
	op.open = &o
	op.cancel = b.open(&o, op.answered)
}

// open asks the store. What it gives done is a file with an End, or the Same, or an error.
func (b *Library) open(o *Open, done func(*File, error)) (cancel func()) {
	return b.store.Open(b.loop, o, func(f *File, err error) {
		switch {
		case err != nil:
			f = nil
		case f.Same && o.Have == "" || !f.Same && f.End == nil:
			f, err = nil, fmt.Errorf("file %q: the store has opened nothing", o.Name)
		}
		done(f, err)
	})
}

// left is told that a waiter has given up.
func (op *opening) left() {
	op.live--
	if op.live == 0 {
		op.end()
	}
}

// end gives up: nobody waits.
func (op *opening) end() {
	cancel := op.cancel
	op.detach()
	if cancel != nil {
		cancel()
	}
}

// detach takes op out of its entry. It reports whether it was the newest question.
func (op *opening) detach() (newest bool) {
	op.cancel = nil
	e := op.entry
	if newest = e.opening == op; newest {
		e.opening = nil
	}
	if im := op.known; im != nil {
		op.known = nil
		im.unhold()
	}
	op.lib.tidy(e)
	return newest
}

// answered is the store's answer.
func (op *opening) answered(f *File, err error) {
	b, e := op.lib, op.entry
	im := op.known
	switch {
	case err != nil:
		op.detach()
		for _, w := range op.waiters {
			w.answer(nil, err)
		}
		return
	case f.Same && im.stage == over: // it has failed meanwhile
		im.holds--
		op.known = nil
		op.ask(*op.open)
		return
	case f.Same:
		b.cache.hits.Add(uint64(op.live))
		im.holds++ // by us
	default:
		im = b.newImage(e.key, f)
		if im.shareable() {
			b.cache.hits.Add(uint64(op.live - 1))
		}
	}
	old := e.image
	if e.opening == op && b.files[e.key] == e && im.stage != over {
		e.image, e.checked = im, b.loop.Now()
	} else {
		old = nil
	}
	op.detach()
	if old != nil && old != im {
		old.left()
	}
	for _, w := range op.waiters {
		switch {
		case w.ready == nil:
		case im.err != nil:
			w.answer(nil, im.err)
		case im.hold():
			w.give(im)
			im.unhold()
		default: // it is for one reader, and that has it
			w.alone(b)
		}
	}
	im.unhold()
}

// alone asks the store for w and nobody else.
func (w *waiter) alone(b *Library) {
	w.cancel = b.open(w.open, func(f *File, err error) {
		if err != nil {
			w.answer(nil, err)
			return
		}
		im := b.newImage(key{w.open.Name, w.open.Mode}, f)
		if im.err != nil {
			w.answer(nil, im.err)
			return
		}
		w.give(im)
		im.unhold()
	})
}

// give answers with a reader of im, which is held.
func (w *waiter) give(im *image) {
	r := &Reader{lib: im.lib, open: w.open, size: im.size, ahead: firstAhead}
	im.join(r)
	w.answer(r, nil)
}

func (w *waiter) answer(r *Reader, err error) {
	if ready := w.ready; ready != nil {
		w.ready = nil
		ready(r, err)
	}
}

func (w *waiter) giveUp() {
	if w.ready != nil {
		w.ready = nil
		w.cancel()
	}
}

// A Reader is a file that is being read, for one transfer: its Source. It belongs to the loop of its Library.
type Reader struct {
	lib  *Library
	open *Open
	size int64 // as it was announced

	image  *image // nil: err, or it is being opened anew
	at     int    // in image.readers
	cancel func() // of the opening
	proof  []byte // what was given before that, until it is known to be the same in the new image
	err    error
	closed bool

	notify  func()
	given   int64 // what is below was given
	forgot  int64 // what is below is not asked for again
	ahead   int64
	off     int64 // what is waited for
	n       int
	waiting bool // since Append said so
	asking  bool // in Append
}

// Size returns the bytes of the file; -1: they are not known.
func (r *Reader) Size() int64 { return r.size }

// Err returns why the file cannot be read to its end.
func (r *Reader) Err() error { return r.err }

// Notify sets what is called when what Append said Wait for has come, and when reading has failed.
// It is called on the loop, never within Append, and not after Close. It may call any method.
func (r *Reader) Notify(f func()) { r.notify = f }

// Ahead sets how many bytes beyond what was forgotten are fetched. Less than what Append is asked for is not enough. It is not called before the
// visitor's address has proven to be his: what is fetched then costs others something.
func (r *Reader) Ahead(n int) {
	r.ahead = int64(n)
	if r.image != nil {
		r.image.wanted(r)
	}
}

// Forget says that Append is not called for what is below off any more.
func (r *Reader) Forget(off int64) {
	if off > r.forgot {
		r.forgot = off
		if r.image != nil {
			r.image.wanted(r)
		}
	}
}

// Append appends n bytes of the file at off, as tftp.Source has it. The last bytes are there when the file is known to have come whole.
func (r *Reader) Append(dst []byte, off int64, n int) ([]byte, tftp.State) {
	if off >= r.off {
		r.waiting = false // what was given before may be asked for again, and more is waited for all the same
	}
	if r.image != nil && !r.reached(off, n) {
		r.asking = true
		r.image.pump(1)
		r.asking = false
	}
	im := r.image
	switch {
	case r.err != nil:
		return dst, tftp.Failed
	case im == nil || !r.reached(off, n):
		r.off, r.n, r.waiting = off, n, true
		return dst, tftp.Wait
	case r.proof != nil && !r.proven():
		r.err = r.changed()
		im.leave(r)
		return dst, tftp.Failed
	}
	dst = im.append(dst, off, n)
	r.given = max(r.given, min(off+int64(n), im.have))
	if im.whole && off+int64(n) >= im.size {
		return dst, tftp.End
	}
	return dst, tftp.More
}

// Close ends the reading. It may be called again.
func (r *Reader) Close() {
	if r.closed {
		return
	}
	r.closed, r.notify = true, nil
	if r.err == nil {
		r.err = net.ErrClosed
	}
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
	if r.image != nil {
		r.image.leave(r)
	}
}

// reached reports whether Append of n bytes at off has something to give.
func (r *Reader) reached(off int64, n int) bool {
	return r.image.reaches(off, n) && (r.image.whole || int64(len(r.proof)) <= r.image.have)
}

func (r *Reader) changed() error { return fmt.Errorf("file %q: %w", r.open.Name, errChanged) }

// proven compares the new image with what was given of the old one. If that is the same, all is of the new one.
func (r *Reader) proven() bool {
	ok := len(r.image.chunks) > 0 && bytes.HasPrefix(r.image.chunks[0], r.proof)
	if ok {
		r.proof = nil
	}
	return ok
}

// tell calls notify.
func (r *Reader) tell() {
	r.waiting = false
	if r.notify != nil && !r.asking {
		r.notify()
	}
}

// reopen opens the same file for r alone, since its image has become somebody else's.
func (r *Reader) reopen() {
	done := false
	cancel := r.lib.open(r.open, func(f *File, err error) {
		done = true
		r.cancel = nil
		switch {
		case err != nil:
		case f.Size != r.size:
			err = r.changed()
			f.End.Abort(err)
		default:
			im := r.lib.newImage(key{r.open.Name, r.open.Mode}, f)
			if err = im.err; err == nil {
				im.join(r)
				im.unhold()
				if r.waiting && r.reached(r.off, r.n) {
					r.tell()
				}
				return
			}
		}
		r.err = err
		r.tell()
	})
	if !done {
		r.cancel = cancel
	}
}
