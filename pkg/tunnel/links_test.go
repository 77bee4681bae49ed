package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A tapLaneLink has lanes and datagrams, and keeps what is sent on them.
type tapLaneLink struct {
	tapLink
	lanes  []*tapLane
	none   bool // no lane to be had
	plain  bool // nor is there any
	dgrams []string
}

type tapLane struct {
	tapLink
	ended bool
}

func (l *tapLane) Close() { l.ended = true }

func (l *tapLaneLink) Lanes() bool { return !l.plain }

func (l *tapLaneLink) OpenLane() Lane {
	if l.none {
		return nil
	}
	l.lanes = append(l.lanes, &tapLane{})
	return l.lanes[len(l.lanes)-1]
}

func (l *tapLaneLink) SendDatagram(id uint32, b []byte) bool {
	if len(b) > 1200 {
		return false
	}
	l.dgrams = append(l.dgrams, fmt.Sprintf("%d %s", id, b))
	return true
}

// join attaches one more link and has the peer's END come on it.
func (c *script) join(l Link, role Role) {
	c.t.Helper()
	c.s.Attach(l, role, c.now)
	c.s.Flush(c.now)
	c.on(l, "end")
	c.s.Flush(c.now)
	c.on(l, "pong")
	c.link.sent = nil
}

// on gives frames to the session on another link than c.link.
func (c *script) on(l Link, frames ...string) {
	c.t.Helper()
	if err := c.s.Receive(l, c.bytes(frames), c.now); err != nil {
		c.t.Fatal(err)
	}
}

// carried tells how much data was sent since the last call, "-" for none, and from where.
func carried(l *tapLink) string {
	from, to := uint64(0), uint64(0)
	frames(l.sent, func(typ frameType, _ uint32, p []byte) {
		if typ&typeMask == frameData {
			if off := be64(p); to == 0 {
				from, to = off, off
			}
			to += uint64(len(p) - 8)
		}
	})
	l.sent = nil
	if to == from {
		return "-"
	}
	return fmt.Sprintf("%d-%d", from, to)
}

func be64(p []byte) (v uint64) {
	for _, b := range p[:8] {
		v = v<<8 | uint64(b)
	}
	return v
}

func credit(id uint32, received, limit uint64) string {
	return fmt.Sprintf("%x", appendCredit(make([]byte, 0, creditSize), id, received, limit))
}

func TestStreamChangesItsLink(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	c.sends("a stream opens on the control path", "open")
	bulk := &tapLink{}
	c.join(bulk, RoleBulk)
	bulk.sent = nil
	want := func(why, interactive, onBulk string) {
		t.Helper()
		c.s.Flush(c.now)
		if i, b := carried(c.link), carried(bulk); i != interactive || b != onBulk {
			t.Fatalf("%s: %s and %s, want %s and %s", why, i, b, interactive, onBulk)
		}
	}
	st.Write(make([]byte, 60<<10))
	want("a stream that the peer may not have stays", "0-61440", "-")
	st.Write(make([]byte, 40<<10))
	c.recv(credit(1, 10000, 61440))
	want("the window is used up", "-", "-")
	c.recv(credit(1, 20000, 1<<20))
	want("with much to send it waits until all that is in flight is acknowledged", "-", "-")
	c.recv(credit(1, 61440, 1<<20))
	want("then it leaves", "-", "61440-102400")
	c.recv(credit(1, 102400, 1<<20))
	st.Write(make([]byte, 20<<10))
	want("and stays while it has much to send", "-", "102400-122880")
	st.Write(make([]byte, 100))
	want("it stays while something is in flight", "-", "122880-122980")
	c.recv(credit(1, 122980, 1<<20))
	st.Write(make([]byte, 100))
	want("with little to send it comes back", "122980-123080", "-")
	c.recv(credit(1, 123080, 1<<20))
	st.Write(make([]byte, 40<<10))
	want("with much it goes at once", "-", "123080-164040")
	c.s.Lost(bulk, errors.New("cut"), c.now)
	want("what a link loses goes elsewhere", "123080-164040", "-")
	c.recv(credit(1, 164040, 1<<20))
	for range 30 {
		st.Write(make([]byte, 4000))
		want("small writes do not need another link", fmt.Sprintf("%d-%d", st.end-4000, st.end), "-")
	}
	c.join(bulk, RoleBulk)
	bulk.sent = nil
	for range 20 {
		st.Write(make([]byte, 4000))
		want("even if there is one", fmt.Sprintf("%d-%d", st.end-4000, st.end), "-")
	}
}

// Streams that move much are spread over the links for them.
func TestBulkIsSpread(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	links := []*tapLink{{}, {}, {}}
	for _, l := range links {
		c.join(l, RoleBulk)
	}
	for range 6 {
		st := c.open()
		c.s.Flush(c.now)
		c.recv(credit(st.ID(), 0, 1<<20))
		st.Write(make([]byte, 40<<10))
	}
	c.s.Flush(c.now)
	for i, l := range links {
		ids := map[uint32]bool{}
		frames(l.sent, func(typ frameType, id uint32, _ []byte) { ids[id] = typ == frameData })
		if len(ids) != 3 { // two, and the 0 of END and PING
			t.Fatalf("link %d carries %v", i, ids)
		}
	}
}

func TestSuspectLinkIsLeft(t *testing.T) {
	var suspects []Link
	c := newScript(t, Config{Client: true, OnSuspect: func(l Link) { suspects = append(suspects, l) }})
	c.start()
	st := c.open()
	c.sends("a stream", "open")
	c.recv(credit(1, 0, 1<<20))
	bulk := &tapLink{}
	c.join(bulk, RoleBulk)
	bulk.sent = nil
	st.Write(make([]byte, 20000))
	c.s.Flush(c.now)
	if got := carried(bulk); got != "0-20000" {
		t.Fatal(got)
	}
	c.advance(499 * time.Millisecond)
	c.recv(credit(1, 100, 1<<20))
	c.advance(499 * time.Millisecond)
	c.s.Flush(c.now)
	if len(bulk.sent) != 0 {
		t.Fatal("an acknowledgement is a sign of life")
	}
	c.advance(time.Millisecond)
	c.s.Flush(c.now)
	if want := c.bytes([]string{"06 00000000 000008 0000000000000002"}); !bytes.Equal(bulk.sent, want) {
		t.Fatalf("after half a second of silence: %x", bulk.sent)
	}
	c.advance(499 * time.Millisecond)
	c.s.Flush(c.now)
	if got := carried(c.link); got != "-" {
		t.Fatalf("too early: %s", got)
	}
	if want := c.now.Add(time.Millisecond); c.s.Next() != want {
		t.Fatal(c.s.Next().Sub(c.now))
	}
	c.advance(time.Millisecond)
	c.s.Flush(c.now)
	if got := carried(c.link); got != "100-20000" || len(suspects) != 1 || suspects[0] != bulk || !c.s.Links()[1].Suspect {
		t.Fatalf("after a second: %s, %d", got, len(suspects))
	}
	c.recv(credit(1, 20000, 1<<20))
	st.Write(make([]byte, 20000))
	c.s.Flush(c.now)
	if got := carried(c.link); got != "20000-40000" {
		t.Fatalf("a suspect link is used: %s", got)
	}
	c.recv(credit(1, 40000, 1<<20))
	c.on(bulk, "07 00000000 000008 0000000000000002")
	st.Write(make([]byte, 20000))
	c.s.Flush(c.now)
	if got := carried(bulk); got != "40000-60000" || c.s.Links()[1].Suspect {
		t.Fatalf("it is not used again: %s", got)
	}

	// The control path too; and the CREDITs on it are sent again.
	c.recv(credit(1, 60000, 1<<20), "02 00000001 00000d 0000000000000000 68656c6c6f")
	c.advance(lazyAck)
	c.s.Flush(c.now)
	c.link.sent, bulk.sent = nil, nil
	for range 40 {
		c.advance(100 * time.Millisecond)
		c.s.Flush(c.now)
		c.on(bulk, "07 00000000 000008 00000000000000ff") // some life
	}
	if want := c.bytes([]string{credit(1, 5, 65541)}); !bytes.Contains(bulk.sent, want) || bytes.Contains(c.link.sent, want) {
		t.Fatalf("%x\n%x", bulk.sent, c.link.sent)
	}
	if len(suspects) != 2 || suspects[1] != c.link {
		t.Fatal(len(suspects))
	}
}

func TestDrainedLinkIsClosed(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	c.sends("a stream", "open")
	c.recv(credit(1, 0, 1<<20))
	bulk := &tapLaneLink{}
	bulk.none = true
	c.join(bulk, RoleBulk)
	bulk.sent = nil
	st.Write(make([]byte, 20000))
	c.s.Flush(c.now)
	if got := carried(&bulk.tapLink); got != "0-20000" {
		t.Fatal(got)
	}
	bulk.closed = errors.New("open")
	c.s.SetRole(bulk, RoleNone)
	st.Write(make([]byte, 100))
	c.s.Flush(c.now)
	if want := c.bytes([]string{"08 00000000 000001 03"}); !bytes.Equal(bulk.sent, want) {
		t.Fatalf("nothing new goes on it: %x", bulk.sent)
	}
	c.on(bulk, "08 00000000 000001 03")
	c.s.Flush(c.now)
	if bulk.closed == nil {
		t.Fatal("closed with data in flight")
	}
	c.recv(credit(1, 20000, 1<<20))
	c.s.Flush(c.now)
	if got := carried(c.link); got != "20000-20100" || bulk.closed != nil || len(c.s.Links()) != 1 {
		t.Fatalf("%s, %v", got, bulk.closed)
	}
	c.recv(credit(1, 20100, 1<<20))

	// The peer drains: its request is answered when our streams have left.
	bulk = &tapLaneLink{none: true}
	c.join(bulk, RoleBulk)
	st.Write(make([]byte, 20000))
	c.s.Flush(c.now)
	bulk.sent = nil
	c.on(bulk, "08 00000000 000001 03")
	c.s.Flush(c.now)
	if len(bulk.sent) != 0 {
		t.Fatal("answered too early")
	}
	c.recv(credit(1, 40100, 1<<20))
	c.s.Flush(c.now)
	if want := c.bytes([]string{"08 00000000 000001 03"}); !bytes.Equal(bulk.sent, want) {
		t.Fatalf("not answered: %x", bulk.sent)
	}
	bulk.closed = errors.New("open")
	c.advance(drainTimeout)
	if bulk.closed != nil {
		t.Fatal("it stays")
	}
}

func TestLanes(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	l := &tapLaneLink{}
	c.join(l, RoleInteractive) // supersedes
	if !errors.Is(c.link.closed, ErrSuperseded) {
		t.Fatal(c.link.closed)
	}
	l.sent = nil
	st := c.open()
	st.Write([]byte("hello"))
	c.s.Flush(c.now)
	if want := c.bytes([]string{"open", "data"}); !bytes.Equal(l.sent, want) || len(l.lanes) != 0 {
		t.Fatalf("an unconfirmed stream is on the control channel: %x", l.sent)
	}
	c.on(l, credit(1, 5, 1<<20))
	l.sent = nil
	st.Write([]byte("world"))
	c.s.Flush(c.now)
	if len(l.lanes) != 1 || len(l.sent) != 0 || !bytes.Equal(l.lanes[0].sent, c.bytes([]string{"data, offset"})) {
		t.Fatal("then it has a lane")
	}
	lane := l.lanes[0]
	lane.full = true
	st.Write([]byte("!"))
	c.s.Flush(c.now)
	if got := carried(&lane.tapLink); got != "5-10" {
		t.Fatal(got)
	}
	c.s.Flush(c.now)
	lane.full = false
	c.s.LaneDrained(lane, c.now)
	if got := carried(&lane.tapLink); got != "10-11" {
		t.Fatalf("a drained lane goes on: %s", got)
	}
	for range 3 {
		c.advance(2 * time.Second)
		c.on(l, "ping")
	}
	if lane.ended {
		t.Fatal("a lane with something in flight is given back")
	}
	c.on(l, credit(1, 11, 1<<20))
	for range 8 {
		c.advance(2 * time.Second)
		c.on(l, "ping")
	}
	if !lane.ended || len(c.s.carriers[0].opened) != 0 {
		t.Fatal("a silent lane is kept")
	}
	l.none, l.sent = true, nil
	st.Write([]byte("?"))
	c.s.Flush(c.now)
	if got := carried(&l.tapLink); got != "11-12" {
		t.Fatalf("without a lane: %s", got)
	}

	// Lanes are lost with their link, and end with their stream.
	l.none = false
	c.on(l, credit(1, 12, 1<<20))
	c.advance(trimInterval)
	c.s.Flush(c.now)
	st.Write([]byte("again"))
	c.s.Flush(c.now)
	if len(l.lanes) != 2 {
		t.Fatal("no lane after a while")
	}
	next := &tapLaneLink{}
	c.s.Attach(next, RoleInteractive, c.now)
	c.s.Flush(c.now)
	c.on(next, "end")
	c.s.Flush(c.now)
	if len(next.lanes) != 1 || carried(&next.lanes[0].tapLink) != "12-17" {
		t.Fatalf("%d lanes", len(next.lanes))
	}
	st.Reset(CodeCancelled)
	if !next.lanes[0].ended {
		t.Fatal("a lane outlives its stream")
	}
}

// A stream does not wait for an acknowledgement to change to a lane that it cannot have.
func TestNoLanes(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	l := &tapLaneLink{plain: true, none: true}
	c.join(l, RoleInteractive) // supersedes
	st := c.open()
	c.s.Flush(c.now)
	c.on(l, credit(1, 0, 1<<20))
	for _, want := range []string{"0-100000", "100000-200000"} {
		l.sent = nil
		st.Write(make([]byte, 100000))
		c.s.Flush(c.now)
		if got := carried(&l.tapLink); got != want {
			t.Fatalf("sent %s, want %s", got, want)
		}
		c.advance(trimInterval)
	}
	if st.SendDatagram([]byte("hello")); len(l.dgrams) != 0 {
		t.Fatal("a datagram goes beside the link")
	}
}

func TestLaneReceives(t *testing.T) {
	c := newScript(t, Config{})
	c.start()
	c.recv("open")
	data := c.bytes([]string{"data", "data, offset", "data, fin"})
	r := c.s.NewLaneReceiver(c.link)
	for i := range data {
		if err := c.s.ReceiveLane(r, data[i:i+1], c.now); err != nil {
			t.Fatal(err)
		}
	}
	if log := strings.Join(c.log, " "); strings.Count(log, "data 1") != 11 || !strings.HasSuffix(log, "eof 1") {
		t.Fatal(log)
	}
	old := c.link
	c.attach()
	c.recv("end")
	if err := c.s.ReceiveLane(r, c.bytes([]string{"ping"}), c.now); err != nil {
		t.Fatal("a lane of a superseded link is not ignored: ", err)
	}
	if err := c.s.ReceiveLane(c.s.NewLaneReceiver(old), c.bytes([]string{"ping"}), c.now); err != nil {
		t.Fatal("a lane of a link that is not attached is not ignored: ", err)
	}
}

func TestLinksAreBounded(t *testing.T) {
	c := newScript(t, Config{})
	var links []*tapLink
	for range MaxLinks + 3 {
		l := &tapLink{}
		links = append(links, l)
		c.s.Attach(l, RoleBulk, c.now)
	}
	if n := len(c.s.Links()); n != MaxLinks || links[2].closed != ErrSuperseded || links[3].closed != nil {
		t.Fatalf("%d links", n)
	}
}

func TestDatagrams(t *testing.T) {
	c := newScript(t, Config{Client: true})
	lost := c.open()
	lost.SendDatagram([]byte("no link"))
	c.attach()
	c.recv("end")
	c.s.Flush(c.now)
	c.link.sent = nil
	st := c.open()
	st.SendDatagram([]byte("one"))
	c.s.Flush(c.now)
	c.sends("datagrams go behind the OPEN", "01 00000003 000006 686561646572", "0b 00000003 000003 6f6e65")
	lane := &tapLaneLink{}
	c.join(lane, RoleDatagram)
	st.SendDatagram([]byte("two"))
	c.sends("until the stream is confirmed", "0b 00000003 000003 74776f")
	c.recv(credit(3, 0, 65536))
	st.SendDatagram([]byte("three"))
	st.SendDatagram(make([]byte, 1201))
	st.SendDatagram(make([]byte, MaxDatagram+1))
	c.s.Flush(c.now)
	if len(lane.dgrams) != 1 || lane.dgrams[0] != "3 three" {
		t.Fatal(lane.dgrams)
	}
	if n := len(c.link.sent); n != headerSize+1201 {
		t.Fatalf("%d bytes for what does not fit", n)
	}
	if s := c.s.Stats(); s.DatagramsSent != 4 || s.DatagramsDropped != 2 {
		t.Fatalf("%+v", s)
	}
	st.SetHandler(&taker{&funcs{}, func(b []byte) { c.log = append(c.log, fmt.Sprintf("%q", b)) }})
	c.recv("0b 00000003 000003 6f6e65", "0b 00000003 000000", "0b 00000001 000003 6f6e65", "datagram")
	c.s.ReceiveDatagram(lane, 3, []byte("out of band"), c.now)
	st.Close()
	c.recv("0b 00000003 000003 6f6e65")
	c.happens("they come to the stream", `"one"`, `""`, `"out of band"`)
	if s := c.s.Stats(); s.DatagramsReceived != 3 || s.DatagramsDropped != 5 {
		t.Fatalf("%+v", s)
	}
}

// A taker takes datagrams.
type taker struct {
	*funcs
	take func(b []byte)
}

func (h *taker) OnDatagram(b []byte) { h.take(b) }

// A crowd of datagrams leaves half of each batch to streams, and the largest one gets
// through.
func TestDatagramsDoNotDelayStreams(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st, bulk := c.open(), c.open()
	c.s.Flush(c.now)
	bulk.limit = 1 << 30
	c.link.full = true
	bulk.Write(make([]byte, 16<<20))
	var data, datagrams, large int
	batch := func(room int) {
		b := c.s.fill(c.s.control, room)
		if len(b)-Headroom > max(room, headerSize+MaxDatagram) {
			t.Fatalf("%d bytes in a room of %d", len(b), room)
		}
		frames(b[Headroom:], func(typ frameType, _ uint32, p []byte) {
			switch typ {
			case frameDatagram:
				datagrams += len(p)
				if len(p) == MaxDatagram {
					large++
				}
			case frameData:
				data += len(p)
			}
		})
	}
	for range 20 {
		for range 100 {
			st.SendDatagram(make([]byte, 1000))
		}
		batch(batchSize)
	}
	if data < 20*31<<10 || datagrams < 20*31<<10 {
		t.Fatalf("%d bytes of data, %d of datagrams", data, datagrams)
	}
	for range 10 {
		for c.s.dgrams.size > 0 {
			batch(16 << 10)
		}
		st.SendDatagram(make([]byte, MaxDatagram))
		data = 0
		for range 20 {
			batch(16 << 10)
			if c.s.dgrams.size == 0 {
				break
			}
		}
		if c.s.dgrams.size > 0 || data < 4*16<<10 {
			t.Fatalf("a large datagram waits, or does not: %d bytes of data before it", data)
		}
	}
	if large != 10 {
		t.Fatalf("%d large ones", large)
	}
}

// A flood of one stream takes nothing from the others; the oldest are dropped.
func TestDatagramQueueIsFair(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	flood := c.open()
	var streams []*Stream
	for range 7 {
		streams = append(streams, c.open())
	}
	c.s.Flush(c.now)
	c.link.sent, c.link.full = nil, true
	for i := range 2000 {
		flood.SendDatagram(fmt.Appendf(nil, "%01000d", i))
		if i%100 == 0 && i < 1000 {
			for _, st := range streams {
				st.SendDatagram(make([]byte, 100))
			}
		}
	}
	if c.s.dgrams.size > maxDatagrams {
		t.Fatalf("%d bytes wait", c.s.dgrams.size)
	}
	c.link.full = false
	c.s.Flush(c.now)
	came, last := map[uint32]int{}, ""
	frames(c.link.sent, func(typ frameType, id uint32, p []byte) {
		came[id]++
		if id == flood.ID() {
			last = string(p[990:])
		}
	})
	for _, st := range streams {
		if came[st.ID()] != 10 {
			t.Fatalf("the flood takes from others: %v", came)
		}
	}
	if came[flood.ID()] < 400 || last != "0000001999" {
		t.Fatalf("%d of the flood, the last is %s", came[flood.ID()], last)
	}
	// What waits for a stream goes with it, and what it leaves behind.
	c.link.full = true
	for range 1000 {
		st := c.open()
		st.SendDatagram([]byte("!"))
		st.Reset(CodeCancelled)
	}
	if c.s.dgrams.size != 0 || c.s.dgrams.turns.len() > 200 {
		t.Fatalf("%d bytes, %d turns", c.s.dgrams.size, c.s.dgrams.turns.len())
	}
}
