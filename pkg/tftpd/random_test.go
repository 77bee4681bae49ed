package tftpd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/tftp"
)

// A visitor is a client of a network that loses and doubles packets, and may behave oddly.
type visitor struct {
	n       *network
	rng     *rand.Rand
	at      netip.AddrPort
	packets chan []byte
	odd     int // 0: it does as it should; see run
	loss    float64
}

// open opens the next port.
func (v *visitor) open() {
	packets := make(chan []byte, 1000)
	v.packets = packets
	v.at = netip.AddrPortFrom(v.at.Addr(), v.at.Port()+1)
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	v.n.recv[v.at] = func(b []byte) {
		select {
		case packets <- b:
		default:
		}
	}
}

func (v *visitor) say(b []byte) {
	for v.rng.Float64() >= v.loss {
		v.n.say(v.at, bytes.Clone(b))
		if v.rng.IntN(20) > 0 {
			break
		}
	}
}

// run transfers a file. It returns how that ended, and what it has read; errGone: it has not waited for the end.
func (v *visitor) run(req tftp.Request, file []byte) (got []byte, err error) {
	for {
		select {
		case <-v.packets: // of what was before
			continue
		default:
		}
		break
	}
	var tr *tftp.Transfer
	over := false
	var request []byte
	send := func(b []byte) {
		if request == nil {
			request = bytes.Clone(b)
		}
		v.say(b)
	}
	cfg := tftp.Config{Send: send, Closed: func(e error) { over, err = true, e }}
	if req.Op == tftp.OpWrite {
		cfg.Source = bytesSource(file)
	} else {
		cfg.Sink = func(b []byte) { got = append(got, b...) }
		cfg.Complete = func() { tr.Confirm(time.Now()) }
	}
	tr = tftp.Dial(cfg, req, int64(len(file)), time.Now())
	most := 1 + v.rng.IntN(30)
	for i := 0; ; i++ {
		if over {
			return got, err
		}
		if i == most {
			switch v.odd {
			case 1: // it dies
				return nil, errGone
			case 2: // it gives up
				v.n.say(v.at, errorPacket(0, "no more"))
				return nil, errGone
			case 3: // it asks for something else
				return nil, errGone
			case 4: // something comes that nobody understands
				junk := make([]byte, v.rng.IntN(20))
				for i := range junk {
					junk[i] = byte(3 + v.rng.IntN(8))
				}
				v.n.say(v.at, junk)
			}
		}
		if i == 1 && v.odd == 5 { // its request comes once more
			v.n.say(v.at, request)
		}
		timer := time.NewTimer(time.Until(tr.Deadline()))
		select {
		case b := <-v.packets:
			if v.rng.Float64() >= v.loss {
				tr.Receive(b, time.Now())
			}
		case <-timer.C:
			tr.Tick(time.Now())
		}
		timer.Stop()
	}
}

var errGone = fmt.Errorf("gone")

type bytesSource []byte

func (s bytesSource) Append(dst []byte, off int64, n int) ([]byte, tftp.State) {
	if rest := s[off:]; len(rest) <= n {
		return append(dst, rest...), tftp.End
	}
	return append(dst, s[off:off+int64(n)]...), tftp.More
}

// TestServerRandom has many clients read and write at once, over a network that loses and doubles packets. Some die, give up, ask for
// something else from the same port, or talk nonsense. Who stays gets his file; and nothing is left of anybody.
func TestServerRandom(t *testing.T) {
	for loop := range 2 {
		t.Run(fmt.Sprintf("loop %d", loop), func(t *testing.T) {
			t.Parallel()
			b, n := netBench(t, loop, func(b *bench) {
				for i := range 10 {
					b.store.files[fmt.Sprint("f", i)] = content(i * 1111)
				}
				b.MaxTransfers = 4000
			})
			const many = 100
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			var all sync.WaitGroup
			for i := range many {
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				v := &visitor{
					n: n, rng: rng, at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i % 50)}), uint16(1000+10*i)),
					loss: 0.01, odd: max(0, rng.IntN(9)-3),
				}
				v.open()
				all.Go(func() {
					for round := range 1 + rng.IntN(3) {
						if v.odd != 3 {
							v.open()
						}
						req := tftp.Request{Op: tftp.OpRead, Name: fmt.Sprint("boot/f", rng.IntN(10))}
						o := &req.Options
						if rng.IntN(2) == 0 {
							o.Block, o.Window = 8+rng.IntN(1460), rng.IntN(64)
						}
						if rng.IntN(3) == 0 {
							o.HasSize = true
						}
						if rng.IntN(3) == 0 {
							o.Timeout = 1
						}
						var file []byte
						if rng.IntN(3) == 0 {
							req.Op, req.Name = tftp.OpWrite, fmt.Sprintf("boot/w%d-%d", i, round)
							file = content(rng.IntN(10000))
						}
						o.Block = max(o.Block, min(100, o.Block*100))
						got, err := v.run(req, file)
						switch {
						case err == errGone:
						case v.odd == 3 && round > 0: // what came for the one before may have come for this one
						case err != nil:
							t.Errorf("visitor %d (odd: %d), round %d, %+v: %v", i, v.odd, round, req, err)
						case req.Op == tftp.OpRead:
							if want := b.store.files[req.Name[5:]]; !bytes.Equal(got, want) {
								t.Errorf("visitor %d got %s, want %s", i, show(got), show(want))
							}
						default:
							b.store.mu.Lock()
							if has := b.store.written[req.Name[5:]]; !bytes.Equal(has, file) {
								t.Errorf("visitor %d has written %s, want %s", i, show(has), show(file))
							}
							b.store.mu.Unlock()
						}
					}
				})
			}
			all.Wait()
			b.Close()
			if n := len(b.errs()); n < many {
				t.Errorf("%d transfers", n)
			}
			on(b.core.Loop(0), func() {
				p := b.port
				if len(p.peers)+len(p.sources)+p.unproven.n+p.over.n+p.running != 0 || b.Stats().Unproven != 0 {
					t.Errorf("what is left: %d peers, %d sources, %d and %d unproven, %d over, %d running", len(p.peers), len(p.sources), p.unproven.n, b.Stats().Unproven, p.over.n, p.running)
				}
			})
			on(b.share.Loop, func() {
				b.share.library().Close()
			})
			on(b.share.Loop, func() {
				for _, e := range slices.Clone(b.store.ends) {
					if !e.over {
						t.Errorf("the End of %s is open (to be written: %v)", e.name, e.write)
					}
				}
			})
		})
	}
}
