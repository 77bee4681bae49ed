package tftpd

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
)

// testFeed is a feed of these pieces and the errors that it ends with, or nil.
func testFeed(l *evloop.Loop, fail error, pieces ...[]byte) (f *feed, asked, freed *int) {
	f, asked, freed = &feed{loop: l}, new(int), new(int)
	f.more = func() {
		i := *asked
		*asked++
		l.Post(func() {
			if i == len(pieces)-1 && fail != nil {
				f.fail(fail)
				return
			}
			f.put(bytes.Clone(pieces[i]), i == len(pieces)-1)
		})
	}
	f.free = func() { *freed++ }
	return f, asked, freed
}

// What one end reads is what the other one writes, whatever joins them, and both end when it is safe.
func TestStoreSplice(t *testing.T) {
	l := storeLoop(t)
	content := contents()[10]
	f, dir := testFolder(t, map[string]string{"file": string(content)})
	f.Write = "new"
	for name, join := range map[string]func(from, to evloop.End, done func(error)){
		"splice": func(from, to evloop.End, done func(error)) { forward.Splice(from, to, done) },
		"connections": func(from, to evloop.End, done func(error)) {
			var conns []evloop.End
			for _, e := range []evloop.End{from, to} {
				c, err := l.AttachEnd(e, (&Open{}).Visitor)
				if err != nil {
					t.Error(err)
				}
				conns = append(conns, c)
			}
			forward.Splice(conns[0], conns[1], done)
		},
	} {
		result := make(chan error, 1)
		l.Post(func() {
			f.Open(l, &Open{Name: "file", Size: -1}, func(from *File, err error) {
				if err != nil {
					result <- err
					return
				}
				f.Open(l, &Open{Name: name, Write: true, Size: -1}, func(to *File, err error) {
					if err != nil {
						result <- err
						return
					}
					join(from.End, to.End, func(err error) { result <- err })
				})
			})
		})
		if err := <-result; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(b), len(content), err)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"connections", "file", "splice"}) {
		t.Errorf("in the folder: %q", got)
	}
}

// A handler that uses nothing has everything kept for it, up to a bound.
func TestFeedKept(t *testing.T) {
	l := storeLoop(t)
	piece := make([]byte, 1000)
	for n, want := range map[int]error{10: nil, evloop.MaxKept/1000 + 2: evloop.ErrInputTooLong} {
		pieces := make([][]byte, n)
		for i := range pieces {
			pieces[i] = piece
		}
		u := &storeUser{result: make(chan error, 1)}
		seen := 0
		u.use = func(b []byte) int {
			seen = len(b)
			return 0
		}
		var asked, freed *int
		l.Post(func() {
			var f *feed
			f, asked, freed = testFeed(l, nil, pieces...)
			u.end = f
			f.SetHandler(u)
		})
		err := u.wait(t)
		if err != want || u.eof != (want == nil) || seen > evloop.MaxKept+2*len(piece) || want == nil && seen != n*len(piece) || *freed != 1 || *asked > n {
			t.Errorf("%d pieces: %v, %d bytes shown, asked %d times, freed %d times", n, err, seen, *asked, *freed)
		}
	}
}

// The next handler gets what the one before it has not used, in the same turn.
func TestFeedHandler(t *testing.T) {
	l := storeLoop(t)
	second := &storeUser{result: make(chan error, 1)}
	first := &storeUser{}
	first.use = func(b []byte) int {
		second.end.SetHandler(second)
		return 3
	}
	l.Post(func() {
		f, _, _ := testFeed(l, nil, []byte("onetwo"), []byte("three"), nil)
		second.end = f
		f.SetHandler(first)
	})
	if err := second.wait(t); err != nil || string(second.data) != "twothree" || !second.eof {
		t.Errorf("%q, %v", second.data, err)
	}
}

// What fails ends the feed, paused or not; nothing is said after that.
func TestFeedFail(t *testing.T) {
	l := storeLoop(t)
	for _, pause := range []bool{false, true} {
		u := &storeUser{result: make(chan error, 2)}
		u.use = func(b []byte) int {
			if pause {
				u.end.Pause()
			}
			return len(b)
		}
		var freed *int
		l.Post(func() {
			var f *feed
			f, _, freed = testFeed(l, fs.ErrInvalid, []byte("one"), nil)
			u.end = f
			f.SetHandler(u)
		})
		if err := u.wait(t); err != fs.ErrInvalid || u.eof {
			t.Errorf("%v, end %v", err, u.eof)
		}
		over := make(chan struct{})
		l.Post(func() {
			u.end.Resume()
			u.end.Write(nil)
			u.end.CloseWrite()
			u.end.Close()
			u.end.Abort(nil)
			l.Post(func() { l.Post(func() { close(over) }) })
		})
		<-over
		if len(u.result) != 0 || *freed != 1 {
			t.Errorf("OnClose came again, or it was freed %d times", *freed)
		}
	}
}

// sipper takes little at a time, and pauses.
type sipper struct {
	feed  *feed
	total int
	most  int // bytes that the feed had at once
}

func (s *sipper) OnData(b []byte) int {
	s.most = max(s.most, len(b))
	n := min(len(b), chunk/8)
	s.total += n
	s.feed.Pause()
	s.feed.loop.Post(s.feed.Resume)
	return n
}

func (s *sipper) OnEOF()        { s.feed.Close() }
func (s *sipper) OnDrain()      {}
func (s *sipper) OnClose(error) {}

// A feed does not run ahead of a handler that takes less than comes.
func TestFeedWaits(t *testing.T) {
	t.Parallel()
	l := storeLoop(t)
	const pieces = 64
	over := make(chan struct{})
	given := 0
	f := &feed{loop: l, free: func() { close(over) }}
	bufs := [2][]byte{make([]byte, chunk), make([]byte, chunk)}
	f.more = func() {
		l.Post(func() {
			given++
			f.put(bufs[given%2], given == pieces)
		})
	}
	s := &sipper{feed: f}
	l.Post(func() { f.SetHandler(s) })
	<-over
	if s.total != pieces*chunk {
		t.Errorf("%d bytes, want %d", s.total, pieces*chunk)
	}
	if s.most > 2*chunk {
		t.Errorf("it had %d bytes at once", s.most)
	}
}
