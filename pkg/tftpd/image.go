package tftpd

import (
	"bytes"
	lru "container/list"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"culvert.dev/pkg/evloop"
)

const (
	chunkShift = 16
	chunkSize  = 1 << chunkShift // bytes

	// firstAhead is what is fetched for a reader before it asks for more: what a transfer may send before its peer has proven itself is one
	// block of 512 bytes. Of a stream, which lets a window of 64 KiB cross
	// before anything is taken, that much more crosses.
	firstAhead = 4 << 10

	// beginning is how much of an image comes before it is decided whose it is: as much as anybody gets for a forged address.
	beginning = 64 << 10

	// minAhead is how far images of one reader read ahead however many there are: two windows.
	minAhead = 128 << 10

	// resumeAt is the room from which on an End is resumed, so that it is not for each acknowledgement.
	resumeAt = 32 << 10

	// lingerTime is how long what has come of a file stays when nobody reads it any more: boot loaders ask for its size, give up, and ask again.
	lingerTime = 3 * time.Second

	// lingering is how many images of a Library do so at a time: more of them than machines that start together have are of somebody who makes up addresses.
	lingering = 64
)

var (
	errUnread  = errors.New("nobody reads the file any more")
	errChanged = errors.New("the file has changed while it was being read")
)

// stage is what an image is.
//
//	young → own, shared, over
//	own → over
//	shared ⇄ resting → over
type stage uint8

const (
	young   stage = iota // no more than its beginning comes, for whoever asks
	own                  // one reader's: what that one has read is forgotten
	shared               // the Cache has a place for all of it
	resting              // shared, whole, and nobody reads it: it belongs to the Cache
	over                 // nothing of it is left
)

// image is what there is of one version of a file, in chunks that come from an End, whose handler it is.
type image struct {
	lib     *Library
	key     key
	size    int64 // -1: not known yet
	version string

	stage  stage
	err    error      // why it is over, if it has failed
	whole  bool       // all of it has come
	end    evloop.End // nil: nothing more comes
	paused bool       // end is
	base   int64      // offset of chunks[0]; only of stage own it is not 0
	have   int64      // offset behind what has come
	limit  int64      // how far its readers wanted it to come, but see bound
	chunks [][]byte   // all full but the last one; the Cache's when resting
	unused []byte     // a chunk that was forgotten, for the next one

	readers []*Reader
	holds   int          // openings that ask whether it is still the file, and may bring readers
	linger  evloop.Timer // there are neither: it is in lib.lingering

	// Guarded by Cache.mu.
	cost  int64        // what it is charged; 0: nothing
	place *lru.Element // in Cache.resting
}

// newImage begins with what has been opened. It is held.
func (b *Library) newImage(k key, f *File) *image {
	im := &image{lib: b, key: k, size: max(f.Size, -1), version: f.Version, end: f.End, limit: firstAhead, holds: 1}
	if len(im.version) > MaxVersion {
		im.version = ""
	}
	b.cache.fetches.Add(1)
	im.end.SetHandler(im)
	return im
}

// shareable reports whether there can be a place for im in the Cache.
func (im *image) shareable() bool { return im.lib.cache.fits(im.size) }

// current reports whether im is the file for whoever asks now.
func (im *image) current() bool {
	e := im.lib.files[im.key]
	return e != nil && e.image == im
}

// hold takes im into use, unless it cannot be read from the beginning by one more.
func (im *image) hold() bool {
	switch im.stage {
	case young:
		if len(im.readers) > 0 && !im.shareable() {
			return false
		}
	case own:
		if len(im.readers) > 0 || im.base > 0 {
			return false
		}
	case resting:
		if !im.lib.cache.wake(im) {
			im.lost()
			return false
		}
		im.stage = shared
	case over:
		return false
	}
	im.wake()
	im.holds++
	return true
}

func (im *image) unhold() {
	im.holds--
	im.left()
}

// join adds r, for which im was held.
func (im *image) join(r *Reader) {
	r.image, r.at = im, len(im.readers)
	im.readers = append(im.readers, r)
	im.wanted(r)
}

// leave takes r out.
func (im *image) leave(r *Reader) {
	last := len(im.readers) - 1
	im.readers[r.at] = im.readers[last]
	im.readers[r.at].at = r.at
	im.readers[last] = nil
	im.readers = im.readers[:last]
	r.image = nil
	im.left()
}

// left decides what becomes of im if nobody uses it.
func (im *image) left() {
	switch {
	case len(im.readers) > 0 || im.holds > 0 || im.stage == over:
	case !im.current() || im.base > 0:
		im.drop(errUnread)
	case im.stage == shared && im.whole && im.version != "":
		im.wake()
		im.stage = resting
		im.lib.cache.rest(im)
	case im.stage != resting:
		im.wake()
		b := im.lib
		if len(b.lingering) == lingering {
			b.lingering[0].drop(errUnread)
		}
		b.lingering = append(b.lingering, im)
		b.loop.Arm(&im.linger, lingerTime, func() { im.drop(errUnread) })
	}
}

// wake ends the lingering of im.
func (im *image) wake() {
	im.linger.Stop()
	if i := slices.Index(im.lib.lingering, im); i >= 0 {
		im.lib.lingering = slices.Delete(im.lib.lingering, i, i+1)
	}
}

// drop frees what im holds. It has no readers, or they are told.
func (im *image) drop(err error) {
	if im.stage == own {
		im.lib.cache.own.Add(-1)
	}
	im.lib.cache.release(im)
	im.lost()
	if e := im.end; e != nil {
		im.end = nil
		e.Abort(err)
	}
}

// lost is drop for an image that the Cache has evicted.
func (im *image) lost() {
	if im.stage == over || im.stage == resting && !im.evicted() {
		return
	}
	im.wake()
	im.stage, im.chunks, im.unused = over, nil, nil
	if e := im.lib.files[im.key]; e != nil && e.image == im {
		e.image = nil
		im.lib.tidy(e)
	}
}

// evicted reports whether the Cache has given up im, which was resting.
func (im *image) evicted() bool {
	im.lib.cache.mu.Lock()
	defer im.lib.cache.mu.Unlock()
	return im.place == nil
}

// fail ends im for all its readers.
func (im *image) fail(err error) {
	readers := im.readers
	im.readers, im.err = nil, err
	im.drop(err)
	for _, r := range readers {
		r.image, r.err = nil, err
	}
	for _, r := range readers {
		r.tell()
	}
}

// bound returns the offset at which im pauses its End.
func (im *image) bound() int64 {
	switch {
	case im.stage == young:
		return min(im.limit, beginning)
	case im.stage != own:
		return im.limit
	case len(im.readers) == 0:
		return im.have
	}
	r := im.readers[0]
	return r.forgot + min(r.ahead, max(minAhead, ownTotal/max(im.lib.cache.own.Load(), 1)))
}

// wanted looks at how far r has got, and wants im to come.
func (im *image) wanted(r *Reader) {
	if to := r.forgot + r.ahead; to > im.limit {
		im.limit = to
		if im.stage == young && to > beginning {
			im.ripen(r)
		}
	}
	im.trim()
	im.pump(resumeAt)
}

// ripen decides whose im is, now that more than its beginning is wanted, by r: everybody's if there is room for it, otherwise r's. The others
// have read nothing that is not at its beginning: if that is the same in an image of their own, they go on with it.
func (im *image) ripen(r *Reader) {
	switch {
	case im.shareable() && im.lib.cache.reserve(im):
		im.stage = shared
	case im.whole: // it stays until the last of them has read it
	default:
		im.stage = own
		im.lib.cache.own.Add(1)
		others := im.readers
		im.readers, r.at = []*Reader{r}, 0
		for _, o := range others {
			if o != r {
				o.image = nil
				if o.given > 0 {
					o.proof = bytes.Clone(im.chunks[0][:o.given])
				}
			}
		}
		for _, o := range others {
			if o != r && !o.closed {
				o.reopen()
			}
		}
	}
}

// trim forgets the chunks that the one reader has forgotten.
func (im *image) trim() {
	if im.stage != own || len(im.readers) == 0 || im.readers[0].proof != nil {
		return
	}
	off := im.readers[0].forgot
	n := 0
	for n < len(im.chunks) && len(im.chunks[n]) == chunkSize && im.base+chunkSize <= off {
		im.base += chunkSize
		im.unused = im.chunks[n][:0]
		n++
	}
	if n > 0 {
		im.chunks = slices.Delete(im.chunks, 0, n)
	}
}

// pump resumes the End if there is room for as much, or for the rest.
func (im *image) pump(room int64) {
	if im.end == nil || !im.paused {
		return
	}
	bound := im.bound()
	if bound-im.have >= room || im.size >= 0 && bound >= im.size {
		im.paused = false
		im.end.Resume()
	}
}

// OnData takes what is wanted of the file.
func (im *image) OnData(b []byte) (used int) {
	if im.end == nil {
		return len(b)
	}
	if im.size >= 0 && int64(len(b)) > im.size-im.have {
		im.fail(fmt.Errorf("file %q: more than the %d bytes came that were announced", im.key.name, im.size))
		return len(b)
	}
	room := max(im.bound()-im.have, 0)
	if int64(len(b)) > room {
		b = b[:room]
	}
	im.store(b)
	if int64(len(b)) == room && im.have != im.size { // nothing but the end comes behind the last byte
		im.paused = true
		im.end.Pause()
	}
	im.trim() // an image that was opened anew comes from the start again
	im.notify()
	return len(b)
}

// store keeps a copy of b.
func (im *image) store(b []byte) {
	for len(b) > 0 {
		at := int((im.have - im.base) >> chunkShift)
		if at == len(im.chunks) {
			im.chunks = append(im.chunks, im.unused)
			im.unused = nil
		}
		c := im.chunks[at]
		n := min(len(b), chunkSize-len(c))
		if len(c)+n > cap(c) {
			c = append(im.chunk(len(c)+n), c...)
		}
		im.chunks[at] = append(c, b[:n]...)
		im.have += int64(n)
		b = b[n:]
	}
}

// chunk returns an empty chunk of n bytes at least for the one in which im.have is. Whoever has not proven that he wants more is not worth a whole one.
func (im *image) chunk(n int) []byte {
	size := int64(chunkSize)
	if im.size >= 0 {
		size = min(size, im.size-im.have&^(chunkSize-1))
	}
	if im.stage == young {
		size = min(size, im.limit)
	}
	return make([]byte, 0, max(size, int64(n)))
}

// OnEOF makes im whole, if it is.
func (im *image) OnEOF() {
	switch {
	case im.end == nil:
		return
	case im.size >= 0 && im.have != im.size:
		im.fail(fmt.Errorf("file %q: %d bytes came, and %d were announced", im.key.name, im.have, im.size))
		return
	}
	e := im.end
	im.end, im.whole, im.size = nil, true, im.have
	e.Close()
	im.notify()
	im.left()
}

func (im *image) OnDrain() {}

// OnClose is the end before all has come.
func (im *image) OnClose(err error) {
	if im.end == nil {
		return
	}
	im.end = nil
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	im.fail(err)
}

// notify tells the readers that wait for what has come.
func (im *image) notify() {
	woken := im.lib.woken[:0]
	im.lib.woken = nil
	for _, r := range im.readers {
		if r.waiting && r.reached(r.off, r.n) {
			woken = append(woken, r)
		}
	}
	for _, r := range woken {
		r.tell()
	}
	clear(woken)
	im.lib.woken = woken[:0]
}

// reaches reports whether n bytes at off have come, or the end of the file before. The last of them are not given away until it is known
// that the file has come whole.
func (im *image) reaches(off int64, n int) bool {
	to := off + int64(n)
	return im.whole || to <= im.have && (im.size < 0 || to < im.size)
}

// append appends n bytes at off, or fewer at the end of the file.
func (im *image) append(dst []byte, off int64, n int) []byte {
	if off < im.base {
		panic("BUG: tftpd: what was forgotten is read")
	}
	for n > 0 && off < im.have {
		c := im.chunks[(off-im.base)>>chunkShift][off&(chunkSize-1):]
		c = c[:min(len(c), n)]
		dst = append(dst, c...)
		off += int64(len(c))
		n -= len(c)
	}
	return dst
}
