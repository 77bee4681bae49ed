package private

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/rtsp"
)

// picture returns the interleaved frames of an access unit of H.264 in n packets, which have the unit's number behind the
// head. A key frame has its parameter sets in a packet of their own, so that what it is cannot be told from the first.
func picture(channel uint8, number, n, size int, key bool) (frames [][]byte) {
	packet := func(marker bool, payload ...byte) {
		b := rtsp.AppendFrameHead(nil, channel, 12+len(payload))
		kind := byte(96)
		if marker {
			kind |= 0x80
		}
		b = append(b, 0x80, kind, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(number)*3600)
		b = binary.BigEndian.AppendUint32(b, uint32(number)) // in place of the source
		frames = append(frames, append(b, payload...))
	}
	if key {
		packet(false, 0x67, 0x42, 0, 0x1f)
	}
	for i := range n {
		head := []byte{0x7c, 0x01} // a fragment of a slice
		if key {
			head[1] = 0x05
		}
		if i == 0 {
			head[1] |= 0x80
		}
		packet(i == n-1, append(append(head, 0x9a), make([]byte, size)...)...)
	}
	return frames
}

func numberOf(frame []byte) int { return int(binary.BigEndian.Uint32(frame[12:])) }

// viewing drives a backlog, and checks what comes out of it.
type viewing struct {
	t       testing.TB
	q       *backlog
	now     time.Time
	pending int // bytes that the stream has and has not sent

	came      map[[2]int]time.Time // when units began, by channel and number
	parts     map[[2]int]int       // packets of it that have not come out
	started   map[[2]int]bool
	keys      map[[2]int]bool
	last      [2]int // number of the last unit out, by track
	said      int    // messages in
	heard     int    // and out
	out, gaps int    // units, and gaps between them
	worst     time.Duration
}

const audioChannel = 2

func newViewing(t testing.TB, deadline time.Duration) *viewing {
	v := &viewing{
		t: t, q: &backlog{deadline: deadline}, now: time.Unix(1000, 0),
		came: make(map[[2]int]time.Time), parts: make(map[[2]int]int), started: make(map[[2]int]bool), keys: make(map[[2]int]bool), last: [2]int{-1, -1},
	}
	v.q.add(0, &camera.Track{Media: "video", Codec: "H264"})
	v.q.add(audioChannel, &camera.Track{Media: "audio", Codec: "PCMA"})
	return v
}

// frames has a whole unit come.
func (v *viewing) frames(channel uint8, number int, key bool, frames [][]byte) {
	id := [2]int{int(channel), number}
	v.came[id], v.parts[id], v.keys[id] = v.now, len(frames), key
	for _, b := range frames {
		d := &rtsp.Demux{Channel: channel, First: true, Last: true}
		if v.q.frame(d, b, v.pending, v.now) {
			v.sent(b)
		}
	}
	v.feed()
}

func (v *viewing) message() {
	b := fmt.Appendf(nil, "R%d", v.said)
	v.said++
	if v.q.message(b) {
		v.sent(b)
	}
}

func (v *viewing) feed() {
	v.q.age(v.now, lateQueue)
	for v.pending < v.q.ahead() {
		b := v.q.next()
		if b == nil {
			return
		}
		v.sent(b)
	}
}

// drain lets the stream send n bytes.
func (v *viewing) drain(n int) {
	for n > 0 && v.pending > 0 {
		sent := min(n, v.pending)
		v.pending -= sent
		n -= sent
		v.feed()
	}
}

func (v *viewing) sent(b []byte) {
	v.t.Helper()
	v.pending += len(b)
	if b[0] == 'R' {
		if want := fmt.Sprintf("R%d", v.heard); string(b) != want {
			v.t.Fatalf("message %s, want %s", b, want)
		}
		v.heard++
		return
	}
	id := [2]int{int(b[1]), numberOf(b)}
	track := int(b[1]) / 2
	if !v.started[id] {
		v.started[id] = true
		v.out++
		before := [2]int{id[0], v.last[track]}
		if v.last[track] >= id[1] {
			v.t.Fatalf("unit %v after %d", id, v.last[track])
		}
		if v.last[track] >= 0 && v.parts[before] > 0 {
			v.t.Fatalf("%d packets of unit %v are missing", v.parts[before], before)
		}
		if id[1] != v.last[track]+1 {
			v.gaps++
			if !v.keys[id] {
				v.t.Fatalf("unit %v after %d is none to start with", id, v.last[track])
			}
		}
		v.last[track] = id[1]
		late := v.now.Sub(v.came[id])
		v.worst = max(v.worst, late)
		if late > v.q.deadline+sweepInterval {
			v.t.Fatalf("unit %v is sent after %v", id, late)
		}
	}
	v.parts[id]--
}

// While the stream takes what comes nothing is kept or dropped. When it does not, what is too late is dropped up to a key
// frame, and the messages come.
func TestBacklog(t *testing.T) {
	v := newViewing(t, 2*time.Second)
	for i := range 20 * 25 {
		v.now = v.now.Add(40 * time.Millisecond)
		v.frames(0, i, i%25 == 0, picture(0, i, 3, 1000, i%25 == 0))
		v.frames(audioChannel, i, true, [][]byte{picture(audioChannel, i, 1, 200, false)[0]})
		if i%50 == 7 {
			v.message()
		}
		switch second := i / 25; {
		case second == 5: // slowly
			v.drain(1000)
		case second >= 8 && second < 14: // not at all
		default:
			v.drain(1 << 20)
		}
		if i < 5*25 && (!v.q.empty() || v.gaps != 0) {
			t.Fatalf("%d bytes wait, %d gaps", v.q.bytes, v.gaps)
		}
	}
	if v.gaps == 0 || v.heard != v.said || !v.q.empty() {
		t.Errorf("%d gaps, %d messages of %d, %d bytes wait", v.gaps, v.heard, v.said, v.q.bytes)
	}
	// Six seconds are lost but for the deadline's two, and what is up to the next key frame.
	if lost := 2*20*25 - v.out; lost < 2*25*3 || lost > 2*25*6+25 || lost != v.q.dropped {
		t.Errorf("%d units lost, %d counted", lost, v.q.dropped)
	}
	t.Logf("worst %v, %d gaps", v.worst, v.gaps)
}

// However much comes, what waits is bounded; if it has to, younger video is dropped than the deadline asks for.
func TestBacklogBounded(t *testing.T) {
	v := newViewing(t, 30*time.Second)
	v.pending = lateAhead
	most := 0
	for i := range 60 * 25 {
		v.now = v.now.Add(40 * time.Millisecond)
		v.frames(0, i, i%25 == 0, picture(0, i, 20, 1000, i%25 == 0))
		most = max(most, v.q.bytes)
	}
	if most > lateQueue+100<<10 || most < lateQueue/2 {
		t.Errorf("%d bytes waited", most)
	}
	v.drain(16 << 20)
	if v.out == 0 || v.gaps == 0 {
		t.Errorf("%d units, %d gaps", v.out, v.gaps)
	}
}

// Frames without anything in them count, too.
func TestBacklogOfSmallFrames(t *testing.T) {
	v := newViewing(t, 30*time.Second)
	v.pending = lateAhead
	most := 0
	for i := range 1000 {
		v.now = v.now.Add(sweepInterval)
		v.frames(9, i, true, slices.Repeat([][]byte{{'$', 9, 0, 0}}, 100))
		most = max(most, len(v.q.items))
	}
	if most > lateQueue/itemCost+100 {
		t.Errorf("%d frames waited", most)
	}
}

// FuzzBacklog has frames, messages, time and room come in any order.
func FuzzBacklog(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x01\x02\x03\x04\xff\x05\x00\x01\x01\x07\xff\x00\x01\x03"))
	f.Add([]byte("\x00\x01\x01\x07\xf0\x07\xf0\x01\x01\x07\xf0\x00\x01\x01\x04\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v := newViewing(t, 200*time.Millisecond)
		var numbers [2]int
		for len(b) > 0 {
			op := b[0]
			b = b[1:]
			arg := 0
			if len(b) > 0 && op&7 > 3 {
				arg = int(b[0])
				b = b[1:]
			}
			switch op & 7 {
			case 0, 1: // a picture, whose packets come at once
				n := 1 + int(op>>3)
				key := op&7 == 0 || numbers[0] == 0
				v.frames(0, numbers[0], key, picture(0, numbers[0], n, 700, key))
				numbers[0]++
			case 2:
				v.frames(audioChannel, numbers[1], true, [][]byte{picture(audioChannel, numbers[1], 1, 100, false)[0]})
				numbers[1]++
			case 3:
				v.message()
			case 4, 5:
				v.drain(arg * 100)
			default:
				v.now = v.now.Add(time.Duration(arg) * time.Millisecond)
			}
		}
		v.now = v.now.Add(sweepInterval)
		v.drain(1 << 30)
		v.feed()
		if v.heard != v.said || v.q.bytes != 0 && v.q.empty() {
			t.Fatalf("%d messages of %d, %d bytes", v.heard, v.said, v.q.bytes)
		}
	})
}
