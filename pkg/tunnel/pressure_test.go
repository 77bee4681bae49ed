package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// visitor is the owner of number n.
func visitorNumber(n int) Owner {
	return Owner{Visitor: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})}
}

// TestStalledStreamsLeaveRoom has the streams of one owner, whose readers take nothing, ask for several
// times the budget of both sides. What another one receives beside them is complete, and does not wait.
func TestStalledStreamsLeaveRoom(t *testing.T) {
	for name, trickle := range map[string]bool{"nothing is read": false, "a byte now and then": true} {
		t.Run(name, func(t *testing.T) {
			const budget = 8 << 20
			var piece [64 << 10]byte
			source := func(st *Stream) { // sends without end
				fill := func() {
					for st.Pending() <= st.HighMark() && st.s != nil {
						st.Write(piece[:])
					}
				}
				st.SetHandler(&funcs{drain: fill})
				fill()
			}
			p := newPair(Config{Client: true, Budget: budget, Accept: func(st *Stream, header []byte) {
				st.Charge(visitorNumber(int(header[0])))
				source(st)
			}}, Config{Budget: budget})
			var stalled []*Stream
			open := func(visitor int) *Stream {
				st, err := p.b.Open([]byte{byte(visitor)})
				if err != nil {
					t.Fatal(err)
				}
				st.Charge(visitorNumber(visitor))
				return st
			}
			var ended, got, most int
			stall := func() {
				st := open(1)
				use := 0
				st.SetHandler(&funcs{
					data: func(b []byte) int { return min(use, len(b)) },
					close: func(err error) {
						if e, ok := errors.AsType[*StreamError](err); !ok || e.Code != CodeMemory {
							t.Errorf("a stalled stream ends with %v", err)
						}
						ended++
					},
				})
				st.Pause()
				stalled = append(stalled, st)
			}
			moving := open(2)
			moving.SetHandler(&funcs{
				data:  func(b []byte) int { got += len(b); return len(b) },
				close: func(err error) { t.Fatalf("the one that moves ends with %v", err) },
			})
			idle := open(3) // has read nothing for long, and holds little
			idle.SetHandler(&funcs{close: func(err error) { t.Fatalf("the one that holds little ends with %v", err) }})
			idle.Pause()

			for turn := range 1000 {
				if turn%2 == 0 && turn < 900 {
					stall()
				}
				if trickle {
					for i, st := range stalled {
						if (turn+i)%33 == 0 && st.s != nil {
							st.h.(*funcs).data = func(b []byte) int { st.Pause(); return 1 }
							st.Resume()
						}
					}
				}
				before := got
				p.advance(30 * time.Millisecond)
				if turn > 20 && got-before < 64<<10 {
					t.Fatalf("turn %d: %d bytes, %d and %d of memory", turn, got-before, p.a.pool.used, p.b.pool.used)
				}
				most = max(most, p.a.pool.used, p.b.pool.used)
			}
			if most > budget+budget/4 {
				t.Errorf("%d bytes of memory", most)
			}
			if ended < 300 || p.a.stats.Stalled+p.b.stats.Stalled < 300 {
				t.Errorf("%d stalled streams have ended", ended)
			}
			t.Logf("%d of 500 ended, %d by their side; %d MiB received, %d KiB of memory at most", ended, p.b.stats.Stalled, got>>20, most>>10)
		})
	}
}

// TestStalledLongestEnds says who is ended when memory is short.
func TestStalledLongestEnds(t *testing.T) {
	var log string
	c := newScript(t, Config{Budget: 1 << 20, PingTimeout: 24 * time.Hour, Accept: func(st *Stream, header []byte) {
		id := st.ID()
		st.Pause()
		st.SetHandler(&funcs{close: func(error) { log += fmt.Sprintf("%d ", id) }})
		if n := int(header[0]); n != 0 {
			st.Charge(visitorNumber(n))
		}
	}})
	c.start()
	hold := func(id uint32, owner int, n int) {
		st := c.s.streams[id]
		if st == nil {
			if err := c.s.receiveOpen(c.s.control, id, []byte{byte(owner)}); err != nil {
				t.Fatal(err)
			}
			st = c.s.streams[id]
		}
		if err := c.s.receiveData(st, st.recvd, make([]byte, n), false); err != nil {
			t.Fatal(err)
		}
	}
	at := func(d time.Duration, want string) {
		t.Helper()
		c.now = c.now.Add(d)
		c.s.Advance(c.now)
		c.s.Flush(c.now)
		if log != want {
			t.Fatalf("%q have ended, want %q; %d used", log, want, c.s.pool.used)
		}
	}
	hold(1, 0, 64<<10) // nobody's
	hold(3, 0, 64<<10)
	hold(5, 1, 64<<10)
	at(time.Minute, "")
	for id := uint32(7); id <= 15; id += 2 {
		hold(id, 2, 64<<10)
	}
	at(time.Hour, "") // half of the budget: there is no need
	hold(17, 2, 48<<10)
	at(time.Second, "7 ") // the longest of those of the one who holds most
	hold(19, 2, 64<<10)
	at(time.Second, "7 9 ")
	hold(21, 3, 64<<10)
	at(time.Second, "7 9 11 ")
	hold(23, 2, 48<<10)
	hold(25, 2, 64<<10)
	for _, id := range []uint32{13, 15} { // their readers take something
		st := c.s.streams[id]
		st.h.(*funcs).data = func(b []byte) int { st.Pause(); return 1 }
		st.Resume()
	}
	at(0, "7 9 11 ")
	at(42*time.Second, "7 9 11 17 ")
	if c.s.Stats().Stalled != 4 {
		t.Fatalf("%+v", c.s.Stats())
	}
}

// TestOwnersShareWindows has the streams of one owner use large windows: they leave some for others.
func TestOwnersShareWindows(t *testing.T) {
	const budget = 16 << 20
	p := newPair(Config{Accept: func(st *Stream, _ []byte) {
		fill := func() {
			for st.Pending() <= st.HighMark() {
				st.Write(make([]byte, 64<<10))
			}
		}
		st.SetHandler(&funcs{drain: fill})
		fill()
	}}, Config{Budget: budget})
	grown := func(n int) int { return p.b.accounts[visitorNumber(n)].grown }
	for n := range 2 {
		for range 8 {
			st := mustOpen(t, p.b, &funcs{})
			st.Charge(visitorNumber(n))
		}
		for range 200 {
			p.advance(5 * time.Millisecond)
		}
	}
	if one, other := grown(0), grown(1); one < budget/8 || one > budget/4 || other < budget/32 {
		t.Fatalf("windows of %d and %d more", one, other)
	}
	for _, st := range p.b.sorted(nil) {
		st.Charge(visitorNumber(2))
	}
	if len(p.b.accounts) != 1 || grown(2) != p.b.grown {
		t.Fatalf("%d accounts, %d, %d", len(p.b.accounts), grown(2), p.b.grown)
	}
	p.b.ResetOpened(CodeCancelled)
	if len(p.b.accounts) != 0 || p.b.grown != 0 {
		t.Fatalf("%d accounts are left", len(p.b.accounts))
	}
}
