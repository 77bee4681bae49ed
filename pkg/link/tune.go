package link

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
)

// A WebSocket adapts to its path, as the system has measured it (TCP_INFO), twice a second while it sends:
//
//   - What waits in the system and in the connection, and so in front of what is urgent, follows the rate of the path.
//     Too much costs latency on a slow path, too little throughput on a fast one.
//   - A path that loses segments while nothing is queued on it loses them by itself, in the air. Congestion controls
//     that take each loss for congestion stand still there, so the socket changes to BBR, which does not.
//
// Each side does so for what it sends.

const (
	tuneEvery = 500 * time.Millisecond

	minUnsent   = 16 << 10
	maxUnsent   = 256 << 10
	startUnsent = 128 << 10 // what a connection of the event loop has

	usualUnsent = 64 << 10 // is right for
	usualRate   = 25e6     // bytes a second: 200 Mbit/s

	lossSpan    = 30     // samples in which the path was used: 15 s
	minLoss     = 0.0005 // share of segments sent again that makes BBR worth it
	minLost     = 5      // segments sent again, in minLossy samples at least
	minLossy    = 3
	calmQueue   = 4 // RTT may be MinRTT/calmQueue more than MinRTT, or calmTime,
	calmTime    = 2 * time.Millisecond
	fastControl = "bbr"
)

// Path is what a link knows of its path, in the direction in which it sends.
type Path struct {
	RTT, MinRTT  time.Duration // smoothed; the least of the last minutes
	DeliveryRate uint64        // bytes a second that have arrived lately; less than the path can, if there was less to send
	Loss         float64       // share of the segments that were sent again, of the last 15 s in which it was used
	Congestion   string        // name of the congestion control
}

// Path returns what is known; false if that is nothing: before the first second of a link, with QUIC, and on systems
// other than Linux.
func (l *Link) Path() (Path, bool) { return l.tune.path, l.tune.path.RTT > 0 }

// tuner is what a link adapts by. The zero value is one that has measured nothing yet.
type tuner struct {
	timer   evloop.Timer
	running bool // timer is armed
	useless bool // the system does not tell
	decided bool // about BBR

	unsent int // bytes; 0: startUnsent
	last   evloop.TCPInfo
	span   [lossSpan]lossSample // a ring
	next   int                  // of span
	path   Path
}

// lossSample is what went out between two looks.
type lossSample struct {
	segments, again uint32
	calm            bool // nothing was queued on the path
}

// sent has the path looked at, soon, because the link sends.
func (t *tuner) sent(l *Link) {
	if !t.running && !t.useless {
		t.running = true
		l.conn.Loop().Arm(&t.timer, tuneEvery, func() { l.lookAtPath() })
	}
}

// room is Link.Room of a WebSocket. While it returns 0 the link asks for OnDrain.
func (t *tuner) room(c *evloop.Conn) int {
	unsent := t.unsent
	if unsent == 0 {
		unsent = startUnsent
	}
	if c.Pending() > min(unsent/2, c.HighMark()) {
		c.NotifyDrain()
		return 0
	}
	return unsent
}

// lookAtPath takes a sample and does what it says.
func (l *Link) lookAtPath() {
	t := &l.tune
	t.running = false
	info, ok := l.conn.TCPInfo()
	if !ok {
		t.useless = true
		return
	}
	if t.path.Congestion == "" {
		t.path.Congestion = l.conn.Congestion()
	}
	used := info.SegmentsOut != t.last.SegmentsOut
	unsent, isLossy := t.look(info)
	if unsent != t.unsent {
		t.unsent = unsent
		l.conn.SetUnsent(unsent)
	}
	if isLossy && !t.decided {
		t.decided = true
		l.hurry()
	}
	if used {
		t.sent(l) // a silent link costs nothing
	}
}

// hurry changes the congestion control, and tells about it.
func (l *Link) hurry() {
	t := &l.tune
	if strings.HasPrefix(t.path.Congestion, fastControl) {
		return
	}
	err := l.conn.SetCongestion(fastControl)
	said := fmt.Sprintf("loss of %.2g %% on the path: congestion control %s instead of %s", t.path.Loss*100, fastControl, t.path.Congestion)
	if err == nil {
		t.path.Congestion = fastControl
	} else {
		said = fmt.Sprintf("loss of %.2g %% on the path, and %s stands still with it", t.path.Loss*100, t.path.Congestion)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("the kernel has no %s: run modprobe tcp_%[1]s, at each start", fastControl)
		case errors.Is(err, fs.ErrPermission):
			err = fmt.Errorf("the kernel keeps %s from us: add it to net.ipv4.tcp_allowed_congestion_control", fastControl)
		}
	}
	if l.OnTuned != nil {
		l.OnTuned(said, err)
	}
}

// look takes a sample, and returns how much may wait unsent and whether the path loses by itself.
func (t *tuner) look(now evloop.TCPInfo) (unsent int, isLossy bool) {
	if segments := now.SegmentsOut - t.last.SegmentsOut; segments > 0 {
		t.span[t.next] = lossSample{
			segments: segments,
			again:    now.Retransmitted - t.last.Retransmitted,
			calm:     now.RTT <= now.MinRTT+max(now.MinRTT/calmQueue, calmTime),
		}
		t.next = (t.next + 1) % lossSpan
	}
	t.last = now
	loss, isLossy := t.loss()
	t.path.RTT, t.path.MinRTT, t.path.DeliveryRate, t.path.Loss = now.RTT, now.MinRTT, now.DeliveryRate, loss
	return t.fit(now), isLossy
}

// loss returns the share of segments that were sent again, and whether that is the path's own doing: they were lost
// while nothing was queued on it, and again and again, since the start of a transfer that overshoots, or an outage,
// loses many at once.
func (t *tuner) loss() (share float64, isLossy bool) {
	var segments, again, calm, calmAgain, worst, lossy uint32
	for _, s := range t.span {
		segments += s.segments
		again += s.again
		if s.calm {
			calm += s.segments
			calmAgain += s.again
			worst = max(worst, s.again)
			if s.again > 0 {
				lossy++
			}
		}
	}
	if segments == 0 {
		return 0, false
	}
	lost := calmAgain - worst
	return float64(again) / float64(segments), lost >= minLost && lossy > minLossy && float64(lost) >= minLoss*float64(calm)
}

// fit returns how many bytes may wait unsent: what is right at 200 Mbit/s, more or less by the root of the rate, which
// is 2 ms worth there and 13 ms at 10 Mbit/s.
func (t *tuner) fit(now evloop.TCPInfo) int {
	current := t.unsent
	if current == 0 {
		current = startUnsent
	}
	want := int(min(usualUnsent*math.Sqrt(float64(now.DeliveryRate)/usualRate), maxUnsent)) &^ (4<<10 - 1)
	want = max(want, minUnsent)
	if want < current && now.AppLimited { // nobody has tried how fast the path is
		return t.unsent
	}
	if d := want - current; d >= -current/8 && d <= current/8 {
		return t.unsent
	}
	return want
}
