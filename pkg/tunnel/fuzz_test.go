package tunnel

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"
)

// FuzzReceive gives a session arbitrary bytes, in fragments, with a new link after
// each violation. It never panics, keeps to its limits, and counts right.
func FuzzReceive(f *testing.F) {
	var all []byte
	for _, name := range []string{"end", "open", "data", "data, offset", "data, fin", "fin alone", "credit", "reset", "reset ack",
		"ping", "pong", "role", "goaway", "datagram", "unknown, flags"} {
		b := unhex(f, golden[name])
		f.Add(uint8(0), append(unhex(f, golden["end"]), b...))
		all = append(all, b...)
	}
	f.Add(uint8(0), all)
	f.Add(uint8(7), all)
	f.Add(uint8(1), append(bytes.Clone(all), all...))
	f.Fuzz(func(t *testing.T, split uint8, b []byte) {
		const maxStreams, budget = 16, 128 << 10
		now := time.Unix(1e9, 0)
		cfg := Config{MaxStreams: maxStreams, Budget: budget, OnClose: func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}}
		ended := map[*Stream]int{}
		cfg.Accept = func(st *Stream, header []byte) {
			h := &funcs{close: func(error) { ended[st]++ }}
			switch len(header) % 4 {
			case 0:
				h.data = func(b []byte) int { st.Write(b); return len(b) }
				h.eof = st.CloseWrite
			case 1:
				h.data = func(b []byte) int { return len(b) / 2 }
			case 2:
				st.Pause()
			case 3:
				h.data = func(b []byte) int { st.Close(); return 0 }
			}
			st.SetHandler(h)
		}
		s := New(cfg, now)
		st, err := s.Open([]byte("ours"))
		if err != nil {
			t.Fatal(err)
		}
		st.SetHandler(&funcs{})
		st.Write([]byte("hello"))
		var l *tapLink
		for step := 0; len(b) > 0; step++ {
			if l == nil {
				l = &tapLink{}
				s.Attach(l, RoleInteractive, now)
				s.Flush(now)
			}
			n := len(b)
			if split > 0 {
				n = min(n, 1+step*int(split)%97)
			}
			err := s.Receive(l, bytes.Clone(b[:n]), now)
			b = b[n:]
			if err != nil {
				if !errors.Is(err, ErrProtocol) {
					t.Fatal(err)
				}
				l.Close(err)
				s.Lost(l, err, now)
				l = nil
			}
			if step%3 == 0 {
				now = now.Add(25 * time.Millisecond)
				s.Advance(now)
			}
			s.Flush(now)
			if len(s.streams) > maxStreams || s.pool.used > budget+2*largeChunk+maxUnused*2 {
				t.Fatalf("%d streams, %d bytes", len(s.streams), s.pool.used)
			}
			audit(t, s)
		}
		s.Close(nil)
		if s.pool.used != 0 || s.unacked != 0 || s.grown != 0 {
			t.Fatalf("left: %d bytes, %d unacked, %d grown", s.pool.used, s.unacked, s.grown)
		}
		for st, n := range ended {
			if n != 1 {
				t.Fatalf("OnClose of stream %d was called %d times", st.ID(), n)
			}
		}
	})
}

// FuzzLinks gives a session with two links and a lane arbitrary bytes on each of them, and
// datagrams, while the links come and go, change their roles and take no more. Each piece of
// the input begins with what to do and the length.
func FuzzLinks(f *testing.F) {
	piece := func(op byte, name string) []byte {
		b := unhex(f, golden[name])
		return append([]byte{op, byte(len(b))}, b...)
	}
	open := slices.Concat(piece(0, "end"), piece(1, "end"), piece(0, "open"))
	f.Add(slices.Concat(open, piece(2, "data")))
	f.Add(slices.Concat(open, piece(1, "data"), []byte{4, 0, 5, 1, 6, 0, 7, 4, 1, 2, 3, 4}))
	f.Add(slices.Concat(open, piece(1, "role"), piece(0, "data, fin")))
	f.Add(slices.Concat(open, piece(2, "data"), []byte{4, 1}, piece(1, "credit")))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1e9, 0)
		s := New(Config{MaxStreams: 16, Budget: 256 << 10, Accept: func(st *Stream, header []byte) {
			st.SetHandler(&taker{&funcs{
				data: func(b []byte) int { st.Write(bytes.Repeat(b, 100)); return len(b) },
				eof:  st.CloseWrite,
			}, st.SendDatagram})
		}}, now)
		for range 3 {
			st, err := s.Open([]byte("ours"))
			if err != nil {
				t.Fatal(err)
			}
			st.SetHandler(&funcs{})
			st.Write(make([]byte, 100<<10))
		}
		links := [2]*tapLaneLink{{}, {}}
		attach := func(i int) {
			links[i] = &tapLaneLink{none: links[i].none}
			s.Attach(links[i], Role(i), now)
		}
		attach(0)
		attach(1)
		lane := s.NewLaneReceiver(links[1])
		for len(b) >= 2 {
			op, n := b[0], min(int(b[1]), len(b)-2)
			p := bytes.Clone(b[2 : 2+n])
			b = b[2+n:]
			i := int(op>>3) & 1
			var err error
			switch op & 7 {
			case 0, 1:
				i = int(op & 1)
				err = s.Receive(links[i], p, now)
			case 2:
				i = 1
				err = s.ReceiveLane(lane, p, now)
			case 3:
				s.ReceiveDatagram(links[i], uint32(n), p, now)
			case 4:
				s.Lost(links[i], nil, now)
				attach(i)
				lane = s.NewLaneReceiver(links[1])
			case 5:
				s.SetRole(links[i], Role(n&3))
			case 6:
				links[i].full = !links[i].full
				links[i].none = n&1 == 0
				for _, l := range links[i].lanes {
					l.full = links[i].full
					s.LaneDrained(l, now)
				}
			case 7:
				now = now.Add(time.Duration(n) * 10 * time.Millisecond)
				s.Advance(now)
			}
			if err != nil {
				if !errors.Is(err, ErrProtocol) {
					t.Fatal(err)
				}
				s.Lost(links[i], err, now)
				attach(i)
				lane = s.NewLaneReceiver(links[1])
			}
			s.Flush(now)
			if len(s.carriers) > 2 || len(s.streams) > 16 {
				t.Fatalf("%d links, %d streams", len(s.carriers), len(s.streams))
			}
			audit(t, s)
		}
		s.Close(nil)
		if s.pool.used != 0 || s.unacked != 0 || s.dgrams.size != 0 || len(s.full) != 0 {
			t.Fatalf("left: %d bytes, %d unacked, %d of datagrams", s.pool.used, s.unacked, s.dgrams.size)
		}
	})
}

// audit checks what must hold between calls.
func audit(t *testing.T, s *Session) {
	t.Helper()
	unacked, used := 0, 0
	streams := make(map[*carrier]int)
	for id, st := range s.streams {
		if st.s != s || st.id != id {
			t.Fatalf("stream %d is not itself", id)
		}
		if st.acked > st.next || st.next > st.end+1 || st.next > st.end && st.flags&flagFin == 0 {
			t.Fatalf("stream %d: acked %d, next %d, end %d", id, st.acked, st.next, st.end)
		}
		kept := 0
		for c := st.in.head; c != nil; c = c.next {
			kept += len(c.b) - c.r
			used += cap(c.b)
		}
		for c := st.out.head; c != nil; c = c.next {
			used += cap(c.b)
		}
		if kept != int(st.kept) {
			t.Fatalf("stream %d keeps %d bytes, counts %d", id, kept, st.kept)
		}
		recvd := st.recvd
		if st.flags&flagPeerFin != 0 {
			recvd--
		}
		if st.consumed+uint64(kept) != recvd || recvd > st.sentLimit {
			t.Fatalf("stream %d: consumed %d, kept %d, received %d of %d", id, st.consumed, kept, recvd, st.sentLimit)
		}
		if (st.cur == nil) != (st.next >= st.end) {
			t.Fatalf("stream %d: cursor", id)
		}
		unacked += int(st.next - st.acked)
		if st.sent < st.next {
			t.Fatalf("stream %d: next %d, sent %d", id, st.next, st.sent)
		}
		if bound := st.flags&flagBound != 0; bound {
			streams[st.path.c]++
		} else if st.next != st.acked || st.flags&flagQueued != 0 || st.path != nil && st.path.lane == nil {
			t.Fatalf("stream %d: acked %d, next %d, bound to nothing", id, st.acked, st.next)
		}
		if st.path != nil && st.path.c.gone {
			t.Fatalf("stream %d is bound to a link that is gone", id)
		}
	}
	for _, c := range s.carriers {
		if c.streams != streams[c] {
			t.Fatalf("a link has %d streams, counts %d", streams[c], c.streams)
		}
	}
	if unacked != s.unacked || used != s.pool.used {
		t.Fatalf("unacked %d, counts %d; used %d, counts %d", unacked, s.unacked, used, s.pool.used)
	}
}

// FuzzSimulation runs the schedules of TestSimulation by the fuzzer's choice of seed.
func FuzzSimulation(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { runSim(t, seed, new(simCount)) })
}
