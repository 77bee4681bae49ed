package tftpd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// shelf is a Store in memory. What it opens comes by itself unless held.
type shelf struct {
	files   map[string]book
	held    bool         // answers and bytes wait until the test lets them go
	now     bool         // answers come within Open, and bytes within Resume
	asked   []*Open      // all that were
	waiting []*question  // held
	ends    []*shelfEnd  // all that were opened
	given   int          // openings that were given up
	err     error        // of all openings
	loop    *evloop.Loop // of the last one

	content map[evloop.Handler][]byte // what each handler is to get, if it is not nil
}

type book struct {
	data    []byte
	version string
	unsized bool
	claim   int64 // bytes more than there are that it claims to have
	cut     error // comes in the place of the end
}

type question struct {
	o    *Open
	done func(*File, error)
}

func (s *shelf) Open(l *evloop.Loop, o *Open, done func(*File, error)) (cancel func()) {
	s.loop = l
	s.asked = append(s.asked, o)
	q := &question{o, done}
	switch {
	case s.now:
		s.answer(q)
		return nil
	case s.held:
		s.waiting = append(s.waiting, q)
	default:
		l.Post(func() { s.answer(q) })
	}
	return func() {
		if q.done == nil {
			panic("given up after it was answered")
		}
		q.done = nil
		s.given++
	}
}

func (s *shelf) answer(q *question) {
	done := q.done
	q.done = nil
	b, ok := s.files[q.o.Name]
	switch {
	case done == nil:
	case s.err != nil:
		done(nil, s.err)
	case !ok:
		done(nil, &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."})
	case q.o.Have != "" && q.o.Have == b.version:
		done(&File{Size: int64(len(b.data)), Version: b.version, Same: true}, nil)
	default:
		e := &shelfEnd{shelf: s, book: b, left: b.data}
		s.ends = append(s.ends, e)
		f := &File{End: e, Size: int64(len(b.data)) + b.claim, Version: b.version}
		if b.unsized {
			f.Size = -1
		}
		done(f, nil)
	}
}

// release lets go what is held.
func (s *shelf) release() {
	for len(s.waiting) > 0 {
		q := s.waiting[0]
		s.waiting = s.waiting[1:]
		s.answer(q)
	}
}

// crossed returns how many bytes were taken of all ends.
func (s *shelf) crossed() (n int) {
	for _, e := range s.ends {
		n += len(e.book.data) - len(e.left)
	}
	return n
}

// shelfEnd gives a book to its handler, in pieces of 16 KiB.
type shelfEnd struct {
	shelf   *shelf
	book    book
	left    []byte
	lent    []byte
	h       evloop.Handler
	paused  bool
	feeding bool
	eof     bool
	closed  bool
	over    error
}

func (e *shelfEnd) Write([]byte)  { panic("written to") }
func (e *shelfEnd) Pending() int  { return 0 }
func (e *shelfEnd) HighMark() int { return 64 << 10 }
func (e *shelfEnd) CloseWrite()   {}
func (e *shelfEnd) Pause()        { e.paused = true }

func (e *shelfEnd) SetHandler(h evloop.Handler) {
	e.h = h
	if e.shelf.content != nil {
		e.shelf.content[h] = e.book.data
	}
	e.more()
}

func (e *shelfEnd) Resume() {
	if e.paused {
		e.paused = false
		e.more()
	}
}

func (e *shelfEnd) more() {
	switch s := e.shelf; {
	case s.now:
		for !e.feeding && e.feed(16<<10) {
		}
	case !s.held:
		s.loop.Post(func() {
			if e.feed(16 << 10) {
				e.more()
			}
		})
	}
}

// feed gives n bytes, or the end. It reports whether there may be more to give.
func (e *shelfEnd) feed(n int) bool {
	if e.paused || e.closed || e.over != nil || e.eof || e.feeding {
		return false
	}
	e.feeding = true
	defer func() { e.feeding = false }()
	if len(e.left) > 0 {
		n = min(n, len(e.left))
		e.lent = append(e.lent[:0], e.left[:n]...)
		used := e.h.OnData(e.lent)
		clear(e.lent) // it is ours again
		e.left = e.left[used:]
		if used < n && !e.paused && e.over == nil && !e.closed {
			panic("bytes were not taken, without a pause")
		}
		return true
	}
	if err := e.book.cut; err != nil {
		e.over = err
		if err == io.EOF { // an orderly end, and no end of the bytes before
			err = nil
		}
		e.h.OnClose(err)
		return false
	}
	e.eof = true
	e.h.OnEOF()
	return false
}

func (e *shelfEnd) Close() {
	e.closed = true
	e.shelf.loop.Post(func() { e.h.OnClose(nil) })
}

func (e *shelfEnd) Abort(err error) {
	if err == nil {
		panic("aborted without an error")
	}
	if e.over == nil {
		e.over = err
		e.shelf.loop.Post(func() {
			if e.h != nil {
				e.h.OnClose(err)
			}
		})
	}
}

// desk is a reading of one file, as a transfer does it.
type desk struct {
	r      *Reader
	want   []byte
	block  int
	off    int
	state  tftp.State
	err    error
	told   int  // notifications
	manual bool // the test reads
	answer int
	image  *image // of the world: whose content want is
}

// read opens a file for a transfer whose peer has proven itself, and reads it to the end.
func (d *desk) read(b *Library, name string) (cancel func()) {
	return b.Read(&Open{Name: name, Mode: tftp.Octet, Size: -1}, func(r *Reader, err error) {
		d.answer++
		d.r, d.err = r, err
		if err != nil {
			return
		}
		r.Notify(d.notified)
		if !d.manual {
			r.Ahead(1 << 20)
			d.on()
		}
	})
}

func (d *desk) notified() {
	d.told++
	if !d.manual {
		d.on()
	}
}

// on reads on as far as it can.
func (d *desk) on() {
	for d.r != nil && d.step() == tftp.More {
	}
	switch d.state {
	case tftp.Failed:
		d.err = d.r.Err()
		d.r.Close()
	case tftp.End:
		d.r.Close()
	}
}

// step reads a block.
func (d *desk) step() tftp.State {
	told := d.told
	pre := []byte("head")
	var b []byte
	b, d.state = d.r.Append(pre, int64(d.off), d.block)
	if d.told != told {
		panic("notified within Append")
	}
	if !bytes.HasPrefix(b, pre) {
		panic("the head is gone")
	}
	b = b[len(pre):]
	switch d.state {
	case tftp.More:
		if len(b) != d.block {
			panic(fmt.Sprintf("More, and %d bytes of %d", len(b), d.block))
		}
	case tftp.End:
		if d.off+len(b) != len(d.want) {
			panic(fmt.Sprintf("End at %d of %d", d.off+len(b), len(d.want)))
		}
	default:
		if len(b) != 0 {
			panic("bytes, but no state of them")
		}
	}
	if !bytes.Equal(b, d.want[d.off:d.off+len(b)]) {
		panic(fmt.Sprintf("other bytes at %d", d.off))
	}
	d.off += len(b)
	d.r.Forget(int64(d.off))
	return d.state
}

func (d *desk) wantWhole(t *testing.T) {
	t.Helper()
	if d.err != nil || d.answer != 1 || d.state != tftp.End || d.off != len(d.want) {
		t.Errorf("answered %d times, state %d at %d of %d, error %v", d.answer, d.state, d.off, len(d.want), d.err)
	}
}

var texts sync.Map // by length

// text returns n bytes, always the same, which are not to be changed.
func text(n int) []byte {
	if b, ok := texts.Load(n); ok {
		return b.([]byte)
	}
	b := make([]byte, 0, n+8)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	texts.Store(n, b[:n])
	return b[:n]
}

// inBubble runs a test in time of its own. What it gives to on runs on the loop.
func inBubble(t *testing.T, f func(t *testing.T, l *evloop.Loop, on func(func()))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Portable: true, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		l := core.Loop(0)
		f(t, l, func(f func()) {
			run(l, f)
			synctest.Wait()
		})
	})
}

// run runs f on l and waits for it.
func run(l *evloop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() {
		defer close(done)
		f()
	})
	<-done
}

func TestReaderGivesTheFile(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, 3<<20 + 7} {
		for _, kind := range []string{"shared", "unsized", "no version", "no cache", "at once"} {
			t.Run(fmt.Sprint(size, " ", kind), func(t *testing.T) {
				inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
					b := book{data: text(size), version: "1", unsized: kind == "unsized"}
					if kind == "no version" {
						b.version = ""
					}
					cache := NewCache(8 << 20)
					if kind == "no cache" {
						cache = nil
					}
					s := &shelf{files: map[string]book{"f": b}, now: kind == "at once"}
					lib := NewLibrary(l, s, cache)
					var desks []*desk
					on(func() {
						for _, block := range []int{8, 512, 1468, 65464} {
							if size > 1<<20 && block == 8 {
								continue
							}
							d := &desk{want: b.data, block: block}
							desks = append(desks, d)
							d.read(lib, "f")
						}
					})
					for _, d := range desks {
						d.wantWhole(t)
					}
					fetches := 1
					if kind == "unsized" || kind == "no cache" {
						fetches = len(desks)
					}
					if n := len(s.ends); n != fetches {
						t.Errorf("fetched %d times, want %d", n, fetches)
					}
					for _, e := range s.ends {
						if !e.closed {
							t.Error("an end is not closed")
						}
					}
					time.Sleep(lingerTime + time.Second)
					on(func() { wantTidy(t, lib, kind == "shared" || kind == "at once") })
				})
			})
		}
	}
}

// wantTidy checks that nothing is left but what is kept.
func wantTidy(t *testing.T, b *Library, kept bool) {
	t.Helper()
	s := b.cache.Stats()
	if len(b.lingering) != 0 || s.Bytes != s.Idle || b.cache.own.Load() != 0 {
		t.Errorf("%d images linger, %d of one reader, %+v", len(b.lingering), b.cache.own.Load(), s)
	}
	if kept != (s.Images > 0) || s.Images != len(b.files) {
		t.Errorf("%d images are charged and %d known; kept: %v", s.Images, len(b.files), kept)
	}
}

// wantBudget checks the bound, and that what is charged covers what there is.
func wantBudget(t *testing.T, c *Cache, libs ...*Library) {
	t.Helper()
	s := c.Stats()
	if s.Bytes > s.Limit || s.Bytes < 0 || s.Idle < 0 || s.Idle > s.Bytes {
		t.Fatalf("%+v", s)
	}
	var held int64
	seen := map[*image]bool{}
	for _, b := range libs {
		for _, e := range b.files {
			if im := e.image; im != nil && !seen[im] {
				seen[im] = true
				held += heldBy(t, im)
			}
		}
	}
	if held > s.Bytes {
		t.Fatalf("%d bytes are held, %d charged", held, s.Bytes)
	}
	for _, b := range libs {
		s.Bytes -= b.Kept()
	}
	if s.Bytes < 0 { // libraries that were closed may have readers still
		t.Fatalf("libraries keep %d bytes more than there are", -s.Bytes)
	}
}

// heldBy returns the bytes of a shared image, and checks the bound of one that is not.
func heldBy(t *testing.T, im *image) (n int64) {
	for _, c := range im.chunks {
		n += int64(cap(c))
	}
	switch im.stage {
	case shared, resting:
		return n
	case young:
		if n > beginning {
			t.Fatalf("a young image has %d bytes", n)
		}
	case own:
		if n > 1<<20+2*chunkSize {
			t.Fatalf("an image of one reader has %d bytes", n)
		}
	case over:
		t.Fatal("an image that is over is known")
	}
	return 0
}

func TestReadAhead(t *testing.T) {
	for _, version := range []string{"", "1"} {
		inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
			s := &shelf{files: map[string]book{"f": {data: text(8 << 20), version: version}}}
			lib := NewLibrary(l, s, NewCache(16<<20))
			d := &desk{want: s.files["f"].data, block: 512, manual: true}
			on(func() { d.read(lib, "f") })
			// Who has not proven himself costs little, and gets his block.
			if n := s.crossed(); n != firstAhead {
				t.Errorf("%d bytes cross for nobody", n)
			}
			on(func() {
				if d.step() != tftp.More {
					t.Error("no first block")
				}
				im := d.r.image
				if n := cap(im.chunks[0]); n > firstAhead || lib.cache.Stats().Bytes != 0 {
					t.Errorf("%d bytes are held for nobody; %+v", n, lib.cache.Stats())
				}
				d.r.Ahead(1 << 20)
			})
			if n := s.crossed(); n != 1<<20+512 {
				t.Errorf("%d bytes are read ahead", n)
			}
			// Acknowledgements make room; the end is not resumed for each of them.
			on(func() {
				for d.off < resumeAt {
					d.step()
				}
				if !s.ends[0].paused {
					t.Error("resumed for a little")
				}
				d.step()
			})
			if n := s.crossed(); n != 1<<20+d.off {
				t.Errorf("%d bytes have come, %d are read", n, d.off)
			}
			// The rest, with what is kept bounded.
			on(func() { d.manual = false; d.on() })
			d.wantWhole(t)
		})
	}
}

// A reader that has been given all that was fetched gets more although it is little.
func TestReadAheadLittle(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(100_000), unsized: true}}}
		lib := NewLibrary(l, s, nil)
		d := &desk{want: s.files["f"].data, block: 512, manual: true}
		on(func() { d.read(lib, "f") })
		on(func() { d.r.Ahead(1024) })
		for range 1000 {
			on(func() {
				if d.state != tftp.End {
					d.step()
				}
			})
		}
		d.wantWhole(t)
		on(func() { d.r.Close(); d.r.Close() })
	})
}

// While a block is waited for, the one before is asked for once more, so that the peer hears something: the wait goes on.
func TestAskedAgainWhileWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(2000)}}}
		lib := NewLibrary(l, s, nil)
		d := &desk{want: s.files["f"].data, block: 512}
		on(func() { d.read(lib, "f"); s.held = true })
		on(func() { s.ends[0].feed(1000) })
		if d.off != 512 || d.state != tftp.Wait {
			t.Fatalf("state %d at %d", d.state, d.off)
		}
		on(func() {
			if b, state := d.r.Append(nil, 0, 512); state != tftp.More || !bytes.Equal(b, d.want[:512]) {
				t.Errorf("the first block again: state %d, %d bytes", state, len(b))
			}
			s.ends[0].feed(1000)
			s.ends[0].feed(1000)
		})
		d.wantWhole(t)
	})
}

func TestStorm(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(256 << 10)
		s := &shelf{files: map[string]book{"f": {data: data, version: "1"}}}
		cache := NewCache(512 << 10)
		lib := NewLibrary(l, s, cache)
		storm := func() {
			desks := make([]*desk, 1000)
			on(func() {
				for i := range desks {
					desks[i] = &desk{want: data, block: 1468}
					desks[i].read(lib, "f")
				}
				wantBudget(t, cache, lib)
			})
			for _, d := range desks {
				d.wantWhole(t)
			}
		}
		want := func(asked, hits int) {
			t.Helper()
			if len(s.asked) != asked || len(s.ends) != 1 || s.crossed() != len(data) || cache.Stats().Hits != uint64(hits) {
				t.Errorf("asked %d times, fetched %d times, %d bytes, %+v", len(s.asked), len(s.ends), s.crossed(), cache.Stats())
			}
		}
		storm()
		want(1, 999)
		time.Sleep(trustTime - 100*time.Millisecond)
		storm()
		want(1, 1999)
		time.Sleep(200 * time.Millisecond) // the answer is 2 seconds old
		storm()
		want(2, 2999)
		if o := s.asked[1]; o.Have != "1" || cache.Stats().Validations != 1 {
			t.Errorf("asked for %+v", o)
		}
		time.Sleep(time.Hour)
		storm()
		want(3, 3999)
	})
}

func TestChangedFile(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(300_000), version: "1"}}}
		cache := NewCache(2 << 20)
		lib := NewLibrary(l, s, cache)
		slow := &desk{want: s.files["f"].data, block: 512, manual: true}
		on(func() { slow.read(lib, "f") })
		on(func() { slow.r.Ahead(1 << 20) })
		s.files["f"] = book{data: text(299_999), version: "2"}
		quick := &desk{want: text(300_000), block: 1468} // the answer is trusted
		on(func() { quick.read(lib, "f") })
		quick.wantWhole(t)
		time.Sleep(trustTime)
		next := &desk{want: s.files["f"].data, block: 1468}
		on(func() { next.read(lib, "f"); wantBudget(t, cache, lib) })
		next.wantWhole(t)
		if n := cache.Stats().Images; n != 2 {
			t.Errorf("%d images", n)
		}
		on(func() { slow.manual = false; slow.on() })
		slow.wantWhole(t)
		on(func() { wantTidy(t, lib, true) }) // the old one is gone with its last reader

		delete(s.files, "f")
		time.Sleep(trustTime)
		gone := &desk{}
		on(func() { gone.read(lib, "f") })
		if e, ok := gone.err.(*tftp.Error); !ok || e.Code != tftp.CodeNotFound {
			t.Errorf("error %v", gone.err)
		}
	})
}

// A question that was asked before a file was written does not answer those who come after it.
func TestWritten(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(1000), version: "1"}}}
		lib := NewLibrary(l, s, NewCache(2<<20))
		put := func(n int, version string) *desk {
			s.files["f"] = book{data: text(n), version: version}
			lib.Written("f")
			return &desk{want: s.files["f"].data, block: 512}
		}
		before := &desk{want: s.files["f"].data, block: 512}
		on(func() { before.read(lib, "f") })
		var after, last *desk
		on(func() { after = put(2000, "2"); after.read(lib, "f") })
		on(func() {
			s.held = true
			last = put(3000, "3")
			early := &desk{want: last.want, block: 512}
			early.read(lib, "f")
			lib.Written("f")
			last.read(lib, "f")
			q := s.waiting
			if len(q) != 2 {
				t.Fatalf("asked %d times", len(q))
			}
			s.held = false
			s.answer(q[1])
			s.answer(q[0])
		})
		for _, d := range []*desk{before, after, last} {
			d.wantWhole(t)
		}
		on(func() { wantTidy(t, lib, true) })
	})
}

func TestLinger(t *testing.T) {
	for _, version := range []string{"", "1"} {
		inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
			s := &shelf{files: map[string]book{"f": {data: text(3 << 20), version: version}}}
			lib := NewLibrary(l, s, NewCache(4<<20))
			d := &desk{want: s.files["f"].data, block: 512, manual: true}
			on(func() { d.read(lib, "f") })
			on(func() { d.r.Close() }) // it wanted the size only
			time.Sleep(time.Second)
			d = &desk{want: s.files["f"].data, block: 512, manual: true}
			on(func() { d.read(lib, "f") })
			on(func() { d.step(); d.r.Ahead(1 << 20) })
			if len(s.asked) != 1 {
				t.Errorf("asked %d times", len(s.asked))
			}
			on(func() { d.r.Close() })
			time.Sleep(lingerTime - 100*time.Millisecond)
			on(func() {
				if s.ends[0].over != nil {
					t.Error("given up too early")
				}
			})
			time.Sleep(200 * time.Millisecond)
			on(func() {
				if s.ends[0].over != errUnread {
					t.Errorf("given up: %v", s.ends[0].over)
				}
				wantTidy(t, lib, false)
			})
		})
	}
}

// Whoever makes up names and addresses leaves little behind.
func TestLingerOfMany(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{}}
		for i := range 1000 {
			s.files[fmt.Sprint(i)] = book{data: text(100_000), version: "1"}
		}
		lib := NewLibrary(l, s, NewCache(4<<20))
		on(func() {
			for i := range 1000 {
				d := &desk{want: text(100_000), block: 512, manual: true}
				d.read(lib, fmt.Sprint(i))
				l.Post(func() { l.Post(func() { d.r.Close() }) })
			}
		})
		on(func() {
			if len(lib.lingering) != lingering || len(lib.files) != lingering || lib.cache.Stats().Bytes != 0 {
				t.Errorf("%d linger, %d known, %+v", len(lib.lingering), len(lib.files), lib.cache.Stats())
			}
		})
		if n := s.crossed(); n > 1000*firstAhead {
			t.Errorf("%d bytes crossed", n)
		}
		time.Sleep(lingerTime + 100*time.Millisecond)
		on(func() { wantTidy(t, lib, false) })
	})
}

// What is whole is kept for as long as there is room, and what is not read for longest makes room.
func TestEviction(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{}}
		for _, name := range []string{"a", "b", "c", "d", "large"} {
			s.files[name] = book{data: text(1 << 20), version: "1"}
		}
		s.files["large"] = book{data: text(5 << 20), version: "1"}
		cache := NewCache(3<<20 + 3*imageCost)
		lib, other := NewLibrary(l, s, cache), NewLibrary(l, s, cache)
		read := func(b *Library, name string) {
			d := &desk{want: s.files[name].data, block: 1468}
			on(func() { d.read(b, name); wantBudget(t, cache, lib, other) })
			d.wantWhole(t)
		}
		fetches := func(n uint64) {
			t.Helper()
			if f := cache.Stats().Fetches; f != n {
				t.Errorf("%d fetches, want %d", f, n)
			}
		}
		read(lib, "a")
		read(lib, "b")
		read(other, "c")
		read(lib, "a")
		fetches(3)
		read(other, "d") // for b
		read(lib, "a")
		read(other, "c")
		fetches(4)
		read(lib, "b") // for d
		fetches(5)
		read(lib, "large") // it would not fit, so nothing goes for it
		fetches(6)
		read(lib, "a")
		read(lib, "b")
		read(other, "c")
		fetches(6)
		if n, m := lib.Kept(), other.Kept(); n != 2*(1<<20+imageCost) || m != 1<<20+imageCost {
			t.Errorf("%d and %d bytes are kept", n, m)
		}
		if st := cache.Stats(); st.Evicted != 2 || st.Images != 3 || st.Bytes != st.Limit || len(lib.files) != 2 || len(other.files) != 1 {
			t.Errorf("%+v; %d and %d known", st, len(lib.files), len(other.files))
		}
		time.Sleep(lingerTime + time.Second)
		on(func() { other.Close(); lib.Close() })
		if st := cache.Stats(); st.Bytes != 0 || st.Images != 0 || st.Idle != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// When there is no room, everybody gets an image of his own: also those who share its beginning. They go on if theirs begins
// with what they were given.
func TestNoRoom(t *testing.T) {
	data := text(2 << 20)
	other := bytes.Clone(data)
	other[600]++
	for _, c := range []struct {
		name    string
		next    book
		version string
		given   int // blocks, of 512 bytes
		fails   bool
	}{
		{"nothing was given", book{data: data, version: "1"}, "1", 0, false},
		{"the same", book{data: data, version: "1"}, "1", 3, false},
		{"by another name", book{data: data, version: "2"}, "1", 3, false},
		{"no version", book{data: data}, "", 3, false},
		{"changed behind it", book{data: other, version: "2"}, "1", 1, false},
		{"changed before it", book{data: other, version: "2"}, "1", 2, true},
		{"changed without a version", book{data: other}, "", 2, true},
		{"another size", book{data: other[:2<<20-1], version: "2"}, "1", 0, true},
		{"all of the beginning", book{data: data, version: "1"}, "1", 8, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
				s := &shelf{files: map[string]book{"f": {data: data, version: c.version}, "used": {data: data, version: "1"}}}
				cache := NewCache(3 << 20)
				lib := NewLibrary(l, s, cache)
				pin := &desk{want: data, block: 512, manual: true}
				on(func() { pin.read(lib, "used") })
				on(func() { pin.r.Ahead(1 << 20) })
				var desks []*desk
				on(func() {
					for range 10 {
						d := &desk{want: data, block: 512, manual: true}
						desks = append(desks, d)
						d.read(lib, "f")
					}
				})
				on(func() {
					if len(s.asked) != 2 {
						t.Errorf("asked %d times", len(s.asked))
					}
					for _, d := range desks {
						for range c.given {
							if d.step() != tftp.More {
								t.Error("no beginning")
							}
						}
					}
					s.files["f"] = c.next
					for i, d := range desks {
						if i > 0 {
							d.want = c.next.data
						}
						d.manual = false
						d.r.Ahead(1 << 20)
						d.on()
					}
					desks[9].r.Close() // while it is opened anew
				})
				for i, d := range desks {
					switch {
					case i == 9:
					case i > 0 && c.fails:
						if !errors.Is(d.err, errChanged) {
							t.Errorf("state %d at %d, error %v", d.state, d.off, d.err)
						}
					default:
						d.wantWhole(t)
					}
				}
				if s.given != 1 || len(s.asked) != 11 {
					t.Errorf("asked %d times, given up %d times", len(s.asked), s.given)
				}
				on(func() { wantBudget(t, cache, lib); pin.r.Close() })
				time.Sleep(lingerTime + time.Second)
				on(func() { wantTidy(t, lib, false) })
			})
		})
	}
}

// A file without a version is shared by those who trust the same answer, and not kept.
func TestStormWithoutVersion(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(1 << 20)
		s := &shelf{files: map[string]book{"f": {data: data}}}
		lib := NewLibrary(l, s, NewCache(2<<20))
		for n := range 3 {
			desks := make([]*desk, 100)
			on(func() {
				for i := range desks {
					desks[i] = &desk{want: data, block: 1468}
					desks[i].read(lib, "f")
				}
			})
			for _, d := range desks {
				d.wantWhole(t)
			}
			if len(s.ends) != n+1 {
				t.Errorf("fetched %d times", len(s.ends))
			}
			time.Sleep(trustTime + 100*time.Millisecond)
		}
		time.Sleep(lingerTime)
		on(func() { wantTidy(t, lib, false) })
	})
}

// An image of one reader is for the next one, too, as long as it has its beginning.
func TestJoinOwn(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(2 << 20)
		s := &shelf{files: map[string]book{"f": {data: data}}}
		lib := NewLibrary(l, s, nil)
		start := func() *desk {
			d := &desk{want: data, block: 1024, manual: true}
			on(func() { d.read(lib, "f") })
			on(func() { d.r.Ahead(1 << 20) })
			return d
		}
		a := start()
		on(func() {
			for a.off < chunkSize-1024 {
				a.step()
			}
			a.r.Close()
		})
		b := start()
		if len(s.asked) != 1 {
			t.Errorf("asked %d times, though the beginning is there", len(s.asked))
		}
		on(func() {
			for b.off < chunkSize {
				b.step()
			}
		})
		c := start() // b is reading
		if len(s.asked) != 2 {
			t.Errorf("asked %d times while it is read", len(s.asked))
		}
		on(func() { b.r.Close() })
		if s.ends[0].over == nil {
			t.Error("what nobody can read stays")
		}
		on(func() { c.manual = false; c.on() })
		c.wantWhole(t)
	})
}

func TestFailures(t *testing.T) {
	boom := &tftp.Error{Code: tftp.CodeAccess, Text: "No."}
	for _, c := range []struct {
		name string
		book book
	}{
		{"short", book{claim: 1}},
		{"short by much", book{claim: 1 << 20}},
		{"long", book{claim: -1}},
		{"long by much", book{claim: -100_000}},
		{"error", book{cut: boom}},
		{"error behind the last byte", book{cut: io.EOF}},
		{"error without a size", book{cut: boom, unsized: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
				c.book.data, c.book.version = text(200_000), "1"
				s := &shelf{files: map[string]book{"f": c.book}}
				lib := NewLibrary(l, s, NewCache(4<<20))
				var desks []*desk
				on(func() {
					for range 5 {
						d := &desk{want: c.book.data, block: 512}
						desks = append(desks, d)
						d.read(lib, "f")
					}
				})
				for _, d := range desks {
					if d.state != tftp.Failed || d.err == nil || d.off == len(d.want) {
						t.Errorf("state %d at %d, error %v", d.state, d.off, d.err)
					}
					if e, ok := d.err.(*tftp.Error); c.book.cut == boom && (!ok || e != boom) {
						t.Errorf("error %v", d.err)
					}
				}
				on(func() { wantTidy(t, lib, false) })
				// The next one begins anew.
				s.files["f"] = book{data: c.book.data, version: "1"}
				d := &desk{want: c.book.data, block: 512}
				on(func() { d.read(lib, "f") })
				d.wantWhole(t)
				on(func() { wantTidy(t, lib, true) })
			})
		})
	}
}

// Whoever has not asked for more for a while hears of a failure, too.
func TestFailureTellsAll(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(200_000), version: "1", cut: io.ErrNoProgress}}, held: true}
		lib := NewLibrary(l, s, NewCache(4<<20))
		d := &desk{want: s.files["f"].data, block: 512, manual: true}
		on(func() { d.read(lib, "f"); s.release() })
		on(func() { d.r.Ahead(1 << 20); s.ends[0].feed(100_000); d.step() })
		on(func() {
			if d.told != 0 || d.state != tftp.More {
				t.Errorf("told %d times", d.told)
			}
			for s.ends[0].feed(100_000) {
			}
			if d.told != 1 || d.r.Err() != io.ErrNoProgress || d.step() != tftp.Failed {
				t.Errorf("told %d times, error %v", d.told, d.r.Err())
			}
			d.r.Close()
			if d.r.Err() != io.ErrNoProgress {
				t.Errorf("error %v after Close", d.r.Err())
			}
		})
	})
}

func TestCancel(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {data: text(1000), version: "1"}}, held: true}
		lib := NewLibrary(l, s, NewCache(4<<20))
		var cancels []func()
		var desks []*desk
		ask := func(n int) {
			cancels, desks = nil, nil
			for range n {
				d := &desk{want: s.files["f"].data, block: 512}
				desks = append(desks, d)
				cancels = append(cancels, d.read(lib, "f"))
			}
		}
		on(func() { // the first one gives up, the others wait
			ask(3)
			cancels[0]()
			cancels[0]()
			if len(s.asked) != 1 || s.given != 0 {
				t.Errorf("asked %d times, given up %d times", len(s.asked), s.given)
			}
			s.held = false
			s.release()
		})
		if desks[0].answer != 0 {
			t.Error("an answer after it was given up")
		}
		desks[1].wantWhole(t)
		desks[2].wantWhole(t)
		cancels[1]() // it has no effect any more

		time.Sleep(trustTime)
		on(func() { // all give up
			s.held = true
			ask(3)
			for _, c := range cancels {
				c()
			}
			if s.given != 1 || lib.files[key{"f", tftp.Octet}].opening != nil {
				t.Errorf("given up %d times", s.given)
			}
			wantTidy(t, lib, true)
			s.held = false
		})
		on(func() { // one gives up when another one is answered
			s.held = true
			ask(2)
			second := cancels[1]
			s.held = false
			desks[0].want = nil
			lib.files[key{"f", tftp.Octet}].opening.waiters[0].ready = func(r *Reader, err error) {
				second()
				r.Close()
			}
			s.release()
		})
		if desks[1].answer != 0 {
			t.Error("an answer after it was given up")
		}
		on(func() { wantTidy(t, lib, true) })
	})
}

// A file that fails while it is asked whether it has changed is fetched anew.
func TestSameOfNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(200_000)
		s := &shelf{files: map[string]book{"f": {data: data, version: "1"}}, held: true}
		lib := NewLibrary(l, s, NewCache(4<<20))
		first := &desk{want: data, block: 512}
		on(func() { first.read(lib, "f"); s.release() })
		time.Sleep(trustTime)
		second := &desk{want: data, block: 512}
		on(func() {
			second.read(lib, "f")
			s.ends[0].h.OnClose(io.ErrUnexpectedEOF)
			s.held = false
			s.release()
		})
		if first.err != io.ErrUnexpectedEOF {
			t.Errorf("error %v", first.err)
		}
		second.wantWhole(t)
		if len(s.asked) != 3 || s.asked[1].Have != "1" || s.asked[2].Have != "" {
			t.Errorf("asked %d times", len(s.asked))
		}
		on(func() { wantTidy(t, lib, true) })
	})
}

// A store that answers what nobody asked does no harm.
func TestOddStore(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		for _, f := range []*File{{Same: true}, {}} {
			lib := NewLibrary(l, openFunc(func(_ *evloop.Loop, _ *Open, done func(*File, error)) func() {
				done(f, nil)
				return nil
			}), NewCache(4<<20))
			d := &desk{}
			on(func() { d.read(lib, "f") })
			if d.err == nil || d.answer != 1 {
				t.Errorf("error %v", d.err)
			}
			on(func() { wantTidy(t, lib, false) })
		}
	})
}

type openFunc func(l *evloop.Loop, o *Open, done func(*File, error)) func()

func (f openFunc) Open(l *evloop.Loop, o *Open, done func(*File, error)) func() { return f(l, o, done) }

func TestLibraryClose(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(2 << 20)
		s := &shelf{files: map[string]book{"kept": {data: data, version: "1"}, "f": {data: data, version: "1"}, "slow": {data: data, version: "1"}}}
		cache := NewCache(16 << 20)
		lib := NewLibrary(l, s, cache)
		kept := &desk{want: data, block: 1468}
		reading := &desk{want: data, block: 512, manual: true}
		on(func() { kept.read(lib, "kept"); reading.read(lib, "f") })
		waiting, late := &desk{}, &desk{}
		on(func() {
			reading.r.Ahead(1 << 20)
			s.held = true
			waiting.read(lib, "slow")
			lib.Close()
			late.read(lib, "kept")
			s.held = false
			if waiting.err != errNoLibrary || late.err != errNoLibrary || s.given != 1 {
				t.Errorf("errors %v, %v", waiting.err, late.err)
			}
			lib.Written("f")
			lib.Close()
			if n := cache.Stats().Images; n != 1 {
				t.Errorf("%d images", n)
			}
		})
		// Who reads gets the rest of the file, and leaves nothing.
		on(func() { reading.manual = false; reading.on() })
		reading.wantWhole(t)
		if st := cache.Stats(); st.Images != 0 || st.Bytes != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Many that each read a file of their own read less ahead, and none of them stands still.
func TestOwnPressure(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		data := text(1 << 19)
		s := &shelf{files: map[string]book{"f": {data: data, unsized: true}}}
		lib := NewLibrary(l, s, nil)
		lib.cache.own.Store(100_000)
		defer lib.cache.own.Store(0)
		for _, block := range []int{512, 65464} {
			d := &desk{want: data, block: block, manual: true}
			on(func() { d.read(lib, "f") })
			on(func() { d.r.Ahead(1 << 20) })
			if n := s.ends[len(s.ends)-1]; len(n.book.data)-len(n.left) != minAhead {
				t.Errorf("%d bytes ahead", len(n.book.data)-len(n.left))
			}
			on(func() { d.manual = false; d.on() })
			d.wantWhole(t)
			time.Sleep(lingerTime + time.Second)
		}
	})
}

// TestConnAsEnd reads a file that comes over TCP.
func TestConnAsEnd(t *testing.T) {
	for _, portable := range []bool{false, true} {
		core, err := evloop.New(evloop.Config{Portable: portable, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		data := text(5<<20 + 3)
		served := make(chan error, 1)
		go func() {
			c, err := ln.Accept()
			if err == nil {
				defer c.Close()
				_, err = c.Write(data)
			}
			served <- err
		}()
		l := core.Loop(0)
		lib := NewLibrary(l, openFunc(func(l *evloop.Loop, _ *Open, done func(*File, error)) func() {
			l.Dial(t.Context(), "tcp", ln.Addr().String(), func(c *evloop.Conn, err error) {
				if err != nil {
					done(nil, err)
					return
				}
				done(&File{End: c, Size: int64(len(data)), Version: "1"}, nil)
			})
			return func() {}
		}), NewCache(8<<20))
		ended := make(chan struct{})
		desks := make([]*desk, 20)
		var left sync.WaitGroup
		run(l, func() {
			for i := range desks {
				d := &desk{want: data, block: 512 << (i % 8), manual: true}
				desks[i] = d
				left.Add(1)
				lib.Read(&Open{Name: "f", Size: -1}, func(r *Reader, err error) {
					d.r, d.err = r, err
					d.answer++
					if err != nil {
						left.Done()
						return
					}
					on := func() {
						if d.on(); d.state == tftp.End || d.state == tftp.Failed {
							left.Done()
						}
					}
					r.Notify(on)
					r.Ahead(1 << 20)
					on()
				})
			}
		})
		go func() { left.Wait(); close(ended) }()
		<-ended
		if err := <-served; err != nil {
			t.Error(err)
		}
		run(l, func() {
			for _, d := range desks {
				d.wantWhole(t)
			}
			wantTidy(t, lib, true)
		})
	}
}

// Libraries of several loops take each other's room, and the bound holds all the time.
func TestCacheOfManyLoops(t *testing.T) {
	t.Parallel()
	const loops, files, size = 4, 6, 100_000
	core, err := evloop.New(evloop.Config{Portable: true, Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	data := text(size)
	cache := NewCache(7*(size+imageCost) + 100) // of 24
	over := make(chan struct{})
	var watcher, readers sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			if s := cache.Stats(); s.Bytes > s.Limit || s.Idle > s.Bytes || s.Idle < 0 {
				t.Errorf("%+v", s)
				return
			}
		}
	})
	libs := make([]*Library, loops)
	for i := range loops {
		l := core.Loop(i)
		s := &shelf{files: map[string]book{}, loop: l}
		for j := range files {
			s.files[fmt.Sprint(j)] = book{data: data, version: "1"}
		}
		libs[i] = NewLibrary(l, s, cache)
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		readers.Add(1)
		var next func(left int)
		next = func(left int) {
			if left == 0 {
				readers.Done()
				return
			}
			d := &desk{want: data, block: 8192, manual: true}
			libs[i].Read(&Open{Name: fmt.Sprint(rnd.IntN(files)), Size: -1}, func(r *Reader, err error) {
				if err != nil {
					t.Error(err)
					readers.Done()
					return
				}
				d.r = r
				on := func() {
					if d.on(); d.state == tftp.End || d.state == tftp.Failed {
						if d.state == tftp.Failed {
							t.Error(d.err)
						}
						l.Post(func() { next(left - 1) })
					}
				}
				r.Notify(on)
				r.Ahead(1 << 20)
				on()
			})
		}
		l.Post(func() { next(500) })
	}
	readers.Wait()
	close(over)
	watcher.Wait()
	s := cache.Stats()
	if s.Hits == 0 || s.Evicted == 0 || s.Fetches+s.Hits != loops*500 {
		t.Errorf("%+v", s)
	}
	known := 0
	for i, b := range libs {
		run(core.Loop(i), func() { // what others have evicted is forgotten
			for _, e := range b.files {
				if im := e.image; im.stage == resting {
					known++
				}
			}
			b.Close()
		})
	}
	if known != s.Images {
		t.Errorf("%d images are known, %d charged", known, s.Images)
	}
	if s := cache.Stats(); s.Bytes != 0 || s.Images != 0 {
		t.Errorf("%+v", s)
	}
}

// A store that fails within Open is an answer, too.
func TestFailureAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
		s := &shelf{files: map[string]book{"f": {version: "1", cut: io.ErrNoProgress}}, now: true}
		lib := NewLibrary(l, s, NewCache(4<<20))
		for range 3 {
			d := &desk{block: 512}
			on(func() { d.read(lib, "f") })
			if d.err != io.ErrNoProgress || d.answer != 1 {
				t.Errorf("answered %d times, error %v", d.answer, d.err)
			}
		}
		on(func() { wantTidy(t, lib, false) })
	})
}

// TestLibraryRandom does what comes to its mind, and checks every byte and the bound after each step.
func TestLibraryRandom(t *testing.T) {
	t.Parallel()
	const steps = 2000
	evicted, moved := uint64(0), 0
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *evloop.Loop, on func(func())) {
				w := newWorld(seed, l)
				for range steps {
					on(w.step)
					on(func() { wantBudget(t, w.cache, w.libs...) })
					if w.rnd.IntN(10) == 0 {
						time.Sleep(time.Duration(w.rnd.IntN(1500)) * time.Millisecond)
					}
				}
				// Let go, all that can be read is read.
				on(w.finish)
				for i, d := range w.desks {
					switch {
					case d.answer == 0:
						t.Errorf("%d was not answered", i)
					case d.err == nil && d.state != tftp.End:
						t.Errorf("%d: state %d at %d of %d", i, d.state, d.off, len(d.want))
					}
				}
				s := w.cache.Stats()
				if w.read < steps/20 || w.failed == 0 || s.Hits == 0 || s.Validations == 0 {
					t.Errorf("%d files were read, %d failed, %+v", w.read, w.failed, s)
				}
				evicted += s.Evicted
				moved += w.moved
				time.Sleep(lingerTime + time.Second)
				synctest.Wait()
				on(func() {
					for _, b := range w.libs {
						if len(b.lingering) > 0 {
							t.Errorf("%d linger", len(b.lingering))
						}
					}
					if s := w.cache.Stats(); s.Bytes != s.Idle || w.cache.own.Load() != 0 {
						t.Errorf("%+v, %d of one reader", s, w.cache.own.Load())
					}
					for _, e := range w.shelf.ends {
						if !e.closed && e.over == nil {
							t.Error("an end is still open")
						}
					}
					for _, b := range w.libs {
						b.Close()
					}
					if s := w.cache.Stats(); s.Bytes != 0 || s.Images != 0 {
						t.Errorf("%+v", s)
					}
				})
			})
		})
	}
	if evicted == 0 || moved == 0 {
		t.Errorf("%d images were evicted, %d readers moved on", evicted, moved)
	}
}

// world is what TestLibraryRandom plays with.
type world struct {
	rnd     *rand.Rand
	loop    *evloop.Loop
	shelf   *shelf
	cache   *Cache
	libs    []*Library
	desks   []*desk // that are not over
	cancels map[*desk]func()
	version int
	read    int
	failed  int
	moved   int // blocks of readers that were opened anew
}

func newWorld(seed uint64, l *evloop.Loop) *world {
	w := &world{
		rnd:     rand.New(rand.NewPCG(seed, 7)),
		loop:    l,
		shelf:   &shelf{files: map[string]book{}, held: true, content: map[evloop.Handler][]byte{}},
		cache:   NewCache(800 << 10),
		cancels: map[*desk]func(){},
	}
	for range 3 {
		w.libs = append(w.libs, NewLibrary(l, w.shelf, w.cache))
	}
	w.loop = l
	w.shelf.loop = l
	for i := range 8 {
		w.write(fmt.Sprint(i))
	}
	return w
}

// write changes a file.
func (w *world) write(name string) {
	w.version++
	sizes := []int{0, 1, 511, 512, 4096, 65536, 65537, 200_000, 700_000, 1_500_000, 3_000_000}
	b := book{data: text(sizes[w.rnd.IntN(len(sizes))]), version: fmt.Sprint(w.version)}
	if old := w.shelf.files[name].data; len(old) > 0 && w.rnd.IntN(3) == 0 { // another one of the same size
		b.data = bytes.Clone(old)
		b.data[w.rnd.IntN(min(len(old), 2000))]++
	}
	switch w.rnd.IntN(12) {
	case 0:
		b.version = ""
	case 1:
		b.unsized = true
	case 2:
		b.claim = int64(1 - 2*w.rnd.IntN(2)) // one more, or one less
		b.claim = max(b.claim, -int64(len(b.data)))
	case 3:
		b.cut = io.ErrNoProgress
	}
	w.shelf.files[name] = b
}

func (w *world) step() {
	name := fmt.Sprint(w.rnd.IntN(9)) // of which one does not exist
	lib := w.libs[w.rnd.IntN(len(w.libs))]
	switch n := w.rnd.IntN(100); {
	case n < 20:
		w.start(lib, name)
		if w.rnd.IntN(3) == 0 {
			w.start(lib, name)
		}
	case n < 45: // somebody reads
		if d := w.any(); d != nil && d.r != nil {
			for range w.rnd.IntN(200) {
				if w.readBlock(d) != tftp.More {
					break
				}
			}
			w.over(d)
		}
	case n < 52: // or shows that he is there
		if d := w.any(); d != nil && d.r != nil {
			d.r.Ahead(1 << 20)
		}
	case n < 60: // or has enough
		if d := w.any(); d != nil {
			if d.r != nil {
				d.r.Close()
			} else {
				w.cancels[d]()
			}
			w.remove(d)
		}
	case n < 70:
		if len(w.shelf.waiting) > 0 {
			i := w.rnd.IntN(len(w.shelf.waiting))
			q := w.shelf.waiting[i]
			w.shelf.waiting = slices.Delete(w.shelf.waiting, i, i+1)
			w.shelf.answer(q)
		}
	case n < 92:
		if len(w.shelf.ends) > 0 {
			e := w.shelf.ends[w.rnd.IntN(len(w.shelf.ends))]
			for range w.rnd.IntN(20) {
				e.feed(1 + w.rnd.IntN(100_000))
			}
		}
	case n < 93:
		if len(w.shelf.ends) > 0 && w.rnd.IntN(4) == 0 {
			e := w.shelf.ends[w.rnd.IntN(len(w.shelf.ends))]
			if !e.closed && e.over == nil && !e.eof {
				e.over = io.ErrClosedPipe
				e.h.OnClose(e.over)
			}
		}
	case n < 94:
		if name != "8" {
			w.write(name)
			for _, b := range w.libs {
				b.Written(name)
			}
		}
	case n < 95:
		if q := w.shelf.waiting; len(q) > 0 {
			w.shelf.waiting = q[1:]
			w.shelf.err = net.ErrClosed
			w.shelf.answer(q[0])
			w.shelf.err = nil
		}
	case n < 98:
	default: // a service is removed, and another one comes
		i := w.rnd.IntN(len(w.libs))
		if w.rnd.IntN(10) == 0 {
			w.libs[i].Close()
			w.libs[i] = NewLibrary(w.loop, w.shelf, w.cache)
		}
	}
	w.shelf.ends = slices.DeleteFunc(w.shelf.ends, func(e *shelfEnd) bool { return e.closed || e.over != nil })
}

// start begins to read. What the file is like is known from the version that the library answers with.
func (w *world) start(b *Library, name string) {
	d := &desk{block: []int{8, 512, 1468, 8192, 65464}[w.rnd.IntN(5)], manual: true}
	w.desks = append(w.desks, d)
	proven := w.rnd.IntN(3) == 0
	w.cancels[d] = b.Read(&Open{Name: name, Size: -1}, func(r *Reader, err error) {
		d.answer++
		d.r, d.err = r, err
		if err != nil {
			w.over(d)
			return
		}
		d.image, d.want = r.image, w.shelf.content[r.image]
		r.Notify(func() {
			d.told++
			w.loop.Post(func() {
				if d.err == nil && !r.closed && w.rnd.IntN(2) == 0 {
					w.readBlock(d)
					w.over(d)
				}
			})
		})
		if proven {
			r.Ahead(1 << 20)
		}
	})
}

// readBlock reads a block. What was read so far is of the same file as that, also if it was opened anew.
func (w *world) readBlock(d *desk) tftp.State {
	same := true
	if im := d.r.image; im != nil && im != d.image {
		d.image = im
		read := d.want[:d.off]
		d.want = w.shelf.content[im]
		if same = bytes.HasPrefix(d.want, read); !same { // there is nothing to be given any more
			d.want, d.image = read, nil
		}
	}
	state := d.step()
	if !same && state != tftp.Failed && state != tftp.Wait {
		panic("one file begins, and another one goes on")
	}
	if d.r.proof != nil {
		w.moved++
	}
	return state
}

func (w *world) any() *desk {
	if len(w.desks) == 0 {
		return nil
	}
	return w.desks[w.rnd.IntN(len(w.desks))]
}

func (w *world) remove(d *desk) {
	w.desks = slices.DeleteFunc(w.desks, func(o *desk) bool { return o == d })
	delete(w.cancels, d)
}

// over removes d if it is.
func (w *world) over(d *desk) {
	switch {
	case d.err != nil:
		w.failed++
	case d.state == tftp.Failed:
		w.failed++
		d.err = d.r.Err()
		d.r.Close()
	case d.state == tftp.End:
		w.read++
		d.r.Close()
	default:
		return
	}
	w.remove(d)
}

// finish lets everything come.
func (w *world) finish() {
	for n := 0; n < 1000 && len(w.desks) > 0; n++ {
		w.shelf.release()
		for _, e := range slices.Clone(w.shelf.ends) {
			for e.feed(1 << 20) {
			}
		}
		for _, d := range slices.Clone(w.desks) {
			if d.r != nil && d.err == nil {
				d.r.Ahead(1 << 20)
				d.block = max(d.block, 512) // megabytes in blocks of 8 bytes would take longer than all the rest
				for w.readBlock(d) == tftp.More {
				}
				w.over(d)
			}
		}
	}
}
