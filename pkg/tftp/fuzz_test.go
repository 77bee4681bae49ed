package tftp

import (
	"encoding/binary"
	"testing"
	"time"
)

// FuzzTransfer drives a transfer of any role and direction with packets and events in any order: none makes it panic, each
// is answered by a bounded number of packets, an unproven peer gets no more than it may, and Closed is called once.
func FuzzTransfer(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 1, 2, 1, 3})                     // RRQ, in lockstep
	f.Add([]byte{1, 1, 1, 2, 0, 2, 0, 2, 0, 3, 0, 9})            // WRQ
	f.Add([]byte{4, 3, 2, 1, 0, 5, 40, 1, 0, 1, 4, 1, 2, 5, 10}) // unproven, by windows, with gaps
	f.Add([]byte{2, 3, 2, 6, 2, 0, 2, 2, 2, 0, 8, 5, 99, 8, 9})  // a client that reads
	f.Add([]byte{3, 3, 1, 6, 1, 1, 7, 5, 60, 1, 1, 11, 0})       // a client that writes
	whole := file(100_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 3 {
			return
		}
		next := func() byte {
			if len(b) == 0 {
				return 0
			}
			c := b[0]
			b = b[1:]
			return c
		}
		kind := next()
		req := Request{Op: OpRead, Name: "f", Options: Options{
			Block:  []int{0, 8, 512, 1468}[next()%4],
			Window: []int{0, 1, 4, 65535}[next()%4],
		}}
		if kind&1 != 0 {
			req.Op = OpWrite
		}
		if kind&8 != 0 {
			req.Options.Timeout = 1
		}
		if kind&16 != 0 {
			req.Options.Rollover, req.Options.HasRollover = 1, true
		}
		if kind&32 != 0 {
			req.Options.HasSize = true
		}
		server, unproven := kind&2 == 0, kind&4 != 0
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		m := &memory{t: t, b: whole, ready: 5000, acked: func() int64 { return 0 }}
		var tr *Transfer
		sent, unprovenBytes, unprovenData, agains, closings, complete := 0, 0, 0, 0, 0, false
		var sunk int64
		cfg := Config{
			Send: func(b []byte) {
				sent++
				if server && unproven && (tr == nil || !tr.Proven()) {
					unprovenBytes += len(b)
					if opcode(b) == OpData {
						unprovenData++
						unprovenBytes -= len(b)
					}
				}
			},
			Closed:   func(error) { closings++ },
			MaxBlock: 1468,
			Unproven: unproven,
		}
		if server == (req.Op == OpRead) {
			cfg.Source = m
		} else {
			cfg.Sink = func(b []byte) {
				sunk += int64(len(b))
				if complete || closings > 0 {
					t.Fatal("Sink gets more after the end")
				}
			}
			cfg.Complete = func() { complete = true }
		}
		if server {
			tr = Serve(cfg, req, int64(len(m.b)), now)
		} else {
			tr = Dial(cfg, req, int64(len(m.b)), now)
		}
		m.acked = tr.Acked
		packet := make([]byte, 0, 2000)
		for len(b) > 0 {
			sent = 0
			wasOver := tr.phase >= dallying
			op := next()
			switch op % 14 {
			case 0:
				tr.Receive(append(packet, b[:min(len(b), int(op/14)+2)]...), now)
				b = b[min(len(b), int(op/14)+2):]
			case 1:
				tr.Receive(appendBlock(packet, OpAck, tr.wire(max(tr.acked+int64(int8(next())), 0))), now)
			case 2, 3:
				o := tr.Options()
				block := o.blockSize()
				if op%14 == 3 {
					block = int(op / 14)
				}
				p := appendBlock(packet, OpData, tr.wire(max(tr.next+int64(int8(next())), 0)))
				tr.Receive(append(p, m.b[:block]...), now)
			case 4:
				tr.Receive(appendBlock(packet, OpAck, binary.BigEndian.Uint16([]byte{next(), next()})), now)
			case 5:
				now = now.Add(time.Duration(next()) * 50 * time.Millisecond)
				tr.Tick(now)
			case 6: // to the deadline
				d := tr.Deadline()
				if d.IsZero() {
					break
				}
				if d.After(now) {
					now = d
				}
				tr.Tick(now)
				if tr.Deadline().Equal(d) {
					t.Fatalf("Tick has not moved the deadline in phase %d", tr.phase)
				}
			case 7:
				o := Options{Block: int(next()) * 8, Window: int(next()), HasSize: op > 99}
				tr.Receive(o.append(append(packet, 0, 6)), now)
			case 8:
				m.ready = min(m.ready+int64(next())*100, int64(len(m.b)))
				tr.Wake(now)
			case 9:
				tr.Hold(op/14%2 == 0, now)
			case 10:
				tr.Confirm(now)
			case 11:
				agains++
				tr.Again(now)
			case 12:
				tr.Receive(AppendError(packet, &Error{Code: Code(next() % 9)}, 100), now)
			case 13:
				if op > 180 {
					tr.Fail(&Error{Code: CodeDiskFull, Text: "full"}, now)
				}
			}
			if most := int(tr.window()); sent > most {
				t.Fatalf("%d packets for one event, with a window of %d", sent, most)
			}
			if closings > 1 || (tr.phase >= dallying) != (closings == 1) {
				t.Fatalf("Closed was called %d times in phase %d", closings, tr.phase)
			}
			if wasOver && sent > 1 || tr.phase == over && wasOver && sent > 0 && tr.Deadline() != (time.Time{}) {
				t.Fatalf("%d packets after the end", sent)
			}
			if tr.phase == over && !tr.Deadline().IsZero() {
				t.Fatal("there is something to wait for after the end")
			}
		}
		if unprovenData > 1+agains {
			t.Fatalf("an unproven peer got %d blocks for %d requests", unprovenData, 1+agains)
		}
		if request := len(req.Append(nil)); unprovenBytes > (2+unprovenRepeats+agains)*request { // and an ERROR
			t.Fatalf("an unproven peer got %d bytes for %d requests of %d", unprovenBytes, 1+agains, request)
		}
		if stats := tr.Stats(); cfg.Sink != nil && stats.Bytes != sunk {
			t.Fatalf("%+v, and %d bytes in Sink", stats, sunk)
		}
	})
}

// FuzzSimulation runs the transfers of TestSimulation by the fuzzer's choice of seed.
func FuzzSimulation(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { new(sim).random(t, seed, new(simCount)).run() })
}
