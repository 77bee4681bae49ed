package private

import (
	"bytes"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/rtsp"
)

const (
	// lateAhead and minAhead bound what a visitor's stream is given before it is sent, beside what a quarter of a second
	// of the video has: it cannot be taken back.
	lateAhead, minAhead = 64 << 10, 4 << 10
	aheadTime           = 250 * time.Millisecond

	// lateQueue bounds what waits for one visitor, and lateQueues what does for all visitors of a session: nobody gets
	// more than a quarter of what is left.
	lateQueue, lateQueues = 4 << 20, 64 << 20

	// itemCost is what a frame that waits costs besides its bytes, of which it may have four.
	itemCost = 160

	// sweepInterval is the least time between two looks through a queue.
	sweepInterval = 50 * time.Millisecond
)

// backlog is what waits for the visitor of a service with a deadline, in the order in which it came, and what has become
// too late is dropped from: access units of video, from one that is too late to the next at which a player can start, and
// packets of everything else. A unit of which something has been sent is sent to its end, and messages always are.
// It does no I/O, and time is given to it.
type backlog struct {
	deadline time.Duration
	tracks   []*lateTrack
	current  *lateUnit // of the frame that comes in pieces

	items   []lateItem // the first heads are gone
	heads   int
	bytes   int // of items, with itemCost
	sweepAt time.Time
	dropped int // units, since the queue was last empty

	counted int // bytes since countAt
	countAt time.Time
	rate    float64 // bytes a second
}

// lateTrack is one medium.
type lateTrack struct {
	channel uint8 // of RTP
	video   bool
	reader  camera.Reader
	unit    *lateUnit // the last one
	gap     bool      // used by sweep
}

// lateUnit is an access unit, or a packet that is none.
type lateUnit struct {
	track   *lateTrack // nil: it is by itself
	at      time.Time
	access  camera.Access
	gap     bool // what is before it in its track was dropped
	begun   bool // something of it has been sent
	dropped bool
}

// lateItem is a frame, a piece of one, or a message.
type lateItem struct {
	b    []byte
	unit *lateUnit // nil: a message
}

func (q *backlog) empty() bool { return q.heads == len(q.items) }

// add enters a track. The same channel again replaces the one that had it.
func (q *backlog) add(channel uint8, d *camera.Track) {
	t := &lateTrack{channel: channel, video: d.IsVideo()}
	t.reader.Reset(d)
	for i, old := range q.tracks {
		if old.channel == channel {
			q.tracks[i] = t
			return
		}
	}
	if len(q.tracks) < camera.MaxTracks {
		q.tracks = append(q.tracks, t)
	}
}

// unitOf returns what a frame belongs to.
func (q *backlog) unitOf(d *rtsp.Demux, b []byte, now time.Time) *lateUnit {
	if !d.First {
		return q.current
	}
	q.current = nil
	for _, t := range q.tracks {
		p := camera.Packet{Data: b[4:]}
		if t.channel != d.Channel || t.reader.Read(&p) != nil {
			continue
		}
		u := t.unit
		if p.Begins || u == nil {
			before := u
			u = &lateUnit{track: t, at: now}
			u.gap = t.video && before != nil && (before.dropped || before.gap && before.access == camera.Undecided)
			if u.gap {
				q.drop(before)
			}
			t.unit = u
		}
		u.access = t.reader.Access
		if u.gap && u.access == camera.Delta && !u.begun {
			q.drop(u)
		}
		q.current = u
	}
	if q.current == nil {
		q.current = &lateUnit{at: now, access: camera.Key}
	}
	return q.current
}

func (q *backlog) drop(u *lateUnit) {
	if !u.dropped {
		u.dropped = true
		q.dropped++
	}
}

// ready reports whether a unit may be sent.
func (u *lateUnit) ready() bool { return u == nil || !u.gap || u.begun || u.access == camera.Key }

// frame takes a frame, or a piece of one, and reports whether it is to be sent at once: nothing waits, and ahead, what
// the stream has been given already, leaves room. Otherwise it is dropped, or kept.
func (q *backlog) frame(d *rtsp.Demux, b []byte, ahead int, now time.Time) bool {
	q.count(len(b), now)
	u := q.unitOf(d, b, now)
	if u.dropped {
		return false
	}
	if q.empty() && u.ready() && ahead+len(b) <= q.ahead() {
		u.begun = true
		return true
	}
	q.push(b, u)
	return false
}

func (q *backlog) push(b []byte, u *lateUnit) {
	q.items = append(q.items, lateItem{bytes.Clone(b), u})
	q.bytes += itemCost + len(b)
}

// message takes a message, which is sent in its turn. It reports whether that is now.
func (q *backlog) message(b []byte) bool {
	if q.empty() {
		return true
	}
	q.push(b, nil)
	return false
}

// count keeps the rate.
func (q *backlog) count(n int, now time.Time) {
	if q.countAt.IsZero() {
		q.countAt = now
	}
	q.counted += n
	if d := now.Sub(q.countAt); d >= aheadTime {
		rate := float64(q.counted) / min(d, 4*aheadTime).Seconds()
		q.rate += (rate - q.rate) / 4
		q.counted, q.countAt = 0, now
	}
}

// ahead is how much the stream may have that is not sent.
func (q *backlog) ahead() int {
	if q.rate == 0 {
		return lateAhead // it is not known yet
	}
	return min(max(int(q.rate*aheadTime.Seconds()), minAhead), lateAhead)
}

// next takes what is to be sent now, or returns nil.
func (q *backlog) next() []byte {
	for !q.empty() {
		i := &q.items[q.heads]
		if i.unit != nil && !i.unit.dropped && !i.unit.ready() {
			return nil
		}
		b, u := i.b, i.unit
		*i = lateItem{}
		q.heads++
		q.bytes -= itemCost + len(b)
		if q.empty() {
			q.items, q.heads = q.items[:0], 0
		}
		if u == nil {
			return b
		}
		if !u.dropped {
			u.begun = true
			return b
		}
	}
	q.items, q.heads = nil, 0
	return nil
}

// age drops what is older than the deadline, and the oldest if there is more than room bytes.
func (q *backlog) age(now time.Time, room int) {
	if q.empty() || now.Sub(q.sweepAt) < sweepInterval {
		return
	}
	q.sweepAt = now
	cutoff := now.Add(-q.deadline)
	if q.bytes > room {
		for _, i := range q.items[q.heads+(len(q.items)-q.heads)/2:] {
			if i.unit != nil && i.unit.at.After(cutoff) {
				cutoff = i.unit.at
				break
			}
		}
	}
	q.sweep(cutoff)
}

// sweep drops what came before cutoff, and what cannot be decoded without.
func (q *backlog) sweep(cutoff time.Time) {
	for _, t := range q.tracks {
		t.gap = false
	}
	kept := q.items[:0]
	var last *lateUnit
	q.bytes = 0
	for _, i := range q.items[q.heads:] {
		if u := i.unit; u != nil {
			if u != last {
				q.judge(u, cutoff)
				last = u
			}
			if u.dropped {
				continue
			}
		}
		kept = append(kept, i)
		q.bytes += itemCost + len(i.b)
	}
	clear(q.items[len(kept):])
	q.items, q.heads = kept, 0
}

// judge decides about a unit in the queue. It does so for each of its packets if they are between those of others, which
// changes nothing.
func (q *backlog) judge(u *lateUnit, cutoff time.Time) {
	t := u.track
	video := t != nil && t.video
	if u.begun || u.dropped {
		if video {
			t.gap = u.dropped
		}
		return
	}
	u.gap = u.gap || video && t.gap
	if u.at.Before(cutoff) || u.gap && u.access == camera.Delta {
		q.drop(u)
	}
	if video {
		t.gap = u.dropped
	}
}

// trackOf finds the track that was set up by a URL. What is not known is taken for pictures, all of which can be decoded.
func trackOf(d *camera.Description, url string) *camera.Track {
	if d != nil {
		if len(d.Tracks) == 1 {
			return &d.Tracks[0]
		}
		if i := camera.TrackOf(d.Tracks, url); i >= 0 {
			return &d.Tracks[i]
		}
	}
	return &camera.Track{Media: "video"}
}
