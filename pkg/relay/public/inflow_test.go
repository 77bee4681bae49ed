package public

import (
	"bytes"
	"testing"
)

// lines is a handler that takes lines.
type lines struct{ got [][]byte }

func (h *lines) OnData(b []byte) int {
	n := bytes.IndexByte(b, '\n') + 1
	if n > 0 {
		h.got = append(h.got, bytes.Clone(b[:n]))
	}
	return n
}

func (h *lines) OnEOF()        {}
func (h *lines) OnDrain()      {}
func (h *lines) OnClose(error) {}

// TestInflowPieces has a long line come byte by byte, as in frames of a WebSocket with one byte each: that must not
// cost a copy of the whole for each of them.
func TestInflowPieces(t *testing.T) {
	const size = 32 << 10
	piece := []byte{'x'}
	copies := testing.AllocsPerRun(1, func() {
		f := &inflow{handler: &lines{}}
		for range size {
			f.push(piece)
		}
	})
	if copies > 100 {
		t.Errorf("%v allocations for %d bytes", copies, size)
	}
}

// TestInflowKeeps has what a handler leaves come to it again, in order and once.
func TestInflowKeeps(t *testing.T) {
	h := &lines{}
	f := &inflow{handler: h}
	want := bytes.Repeat([]byte("a line\nanother one, which is longer\n"), 200)
	for i := 0; i < len(want); i += 11 {
		f.push(want[i:min(i+11, len(want))])
		if len(f.kept) > 200 {
			t.Fatalf("%d bytes are kept of a line", len(f.kept))
		}
	}
	f.push(nil) // the handler takes one line at a time
	for f.kept != nil {
		f.push(nil)
	}
	if got := bytes.Join(h.got, nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came", len(got), len(want))
	}
}
