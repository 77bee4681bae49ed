package tftpd

import (
	"testing"
)

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
