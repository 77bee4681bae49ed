package public

import (
	"math/rand/v2"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tunnel"
)

// Whatever clients and sites do, at whatever moment, nothing is left of it when all have gone: no visitor, no stream, no count.
func TestFilesAnything(t *testing.T) {
	t.Parallel() // it waits for seconds
	backends(t, func(t *testing.T, portable bool) {
		r := newFileRelay(t, portable, func(r *Relay) {
			r.TFTPCache, r.TFTPTransfers, r.TFTPPerAddress, r.MaxVisitors = 100_000, 12, 10, 8
		})
		r.connect("home", nil) // so that office is of another loop than the port
		a := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "a"}, nil)
		b := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "b"}, nil)
		sites, linked := []*testSite{a, b}, []bool{true, true}
		var stores []*testFiles
		for _, s := range sites {
			fs := filesOf(s, map[string]string{"empty": "", "small": "text", "f": textOf(5000), "part": textOf(5000), "large": textOf(150_000)})
			fs.do(func() {
				fs.errors["none"], fs.resets["reset"], fs.most["part"] = 1, tunnel.CodeRefused, 1500
				fs.raw["raw"] = "\x00\x02{}" + textOf(1000)
				fs.raw["same"] = string(relay.AppendFile(nil, relay.FileReply{Size: 1, Version: "v", Same: true}))
				fs.raw["more"] = string(relay.AppendFile(nil, relay.FileReply{Size: 1})) + "xyz"
			})
			stores = append(stores, fs)
		}
		names := []string{"empty", "small", "f", "part", "large", "none", "reset", "raw", "same", "more"}
		seed := rand.Uint64()
		t.Log("seed", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		one := func(n int) bool { return random.IntN(n) == 0 }
		announce := func(i int) {
			files := relay.Files{Cache: !one(3), Write: []string{"", relay.WriteNew, relay.WriteReplace}[random.IntN(3)], MaxSize: int64(random.IntN(2) * 1000)}
			list := announceFiles(files, "all", "tftp:///")
			if one(2) {
				list[0].Policy = &relay.Policy{MaxConnections: 6}
			}
			sites[i].announceTo(list)
		}
		announce(0)
		announce(1)
		services := make(map[*service]bool) // there were
		clients := make([]*fileClient, 12)
		for i := range clients {
			clients[i] = r.fileClient()
		}
		for range 800 {
			c, i := clients[random.IntN(1+random.IntN(len(clients)))], random.IntN(2)
			fs := stores[i]
			var f *testFile // that is open at the site
			fs.do(func() {
				if n := len(fs.open); n > 0 {
					f = fs.open[max(0, n-1-random.IntN(8))]
				}
				for _, svc := range sites[i].session.services {
					services[svc] = true
				}
			})
			switch n := random.IntN(40); {
			case n < 5:
				q := tftp.Request{Op: tftp.Opcode(1 + random.IntN(2)), Name: names[random.IntN(len(names))], Mode: tftp.Mode(random.IntN(2))}
				if one(2) {
					q.Options = tftp.Options{Block: 1024, Window: random.IntN(8)}
				}
				c.send(q.Append(nil))
			case n < 28:
				for range random.IntN(20) {
					p := c.packet(time.Millisecond)
					if len(p) < 4 {
						break
					}
					switch tftp.Opcode(p[1]) {
					case tftp.OpData:
						c.send([]byte{0, 4, p[2], p[3]})
					case tftp.OpAck:
						c.send(append([]byte{0, 3, p[2], p[3] + 1}, textOf(512-random.IntN(2)*random.IntN(512))...))
					case tftp.OpOptionAck:
						c.send([]byte{0, byte(3 + random.IntN(2)), 0, byte(random.IntN(2))})
					}
				}
			case n < 29:
				c.send(append([]byte{0, byte(random.IntN(8)), 0, byte(random.IntN(3))}, textOf(random.IntN(20))...))
			case n < 30:
				c.send([]byte{0, 5, 0, 0, 0})
			case n < 32:
				fs.do(func() { fs.silent = !fs.silent && one(3) })
			case n < 33:
				fs.do(func() { fs.unsafe = !fs.unsafe })
			case n < 34:
				fs.release()
			case f != nil && n < 35:
				fs.do(func() { f.Reset(tunnel.Code(1 + random.IntN(10))) })
			case f != nil && n < 36:
				fs.do(func() {
					switch {
					case one(3):
						f.Write([]byte(textOf(random.IntN(2000))))
					case f.request != nil && !f.over:
						f.answer()
					}
				})
			case f != nil && n < 37:
				fs.do(func() {
					if f.request != nil && f.request.Write && !f.over {
						f.safe()
					}
				})
			case n < 38:
				fs.do(func() {
					if linked[i] = !linked[i]; linked[i] {
						sites[i].attach()
					} else {
						sites[i].cut()
					}
				})
			case n < 39:
				r.Promote(t.Context(), "office", "", time.Duration(random.IntN(2)-1)) // or not
			case linked[i]:
				announce(i)
			}
		}

		for i, fs := range stores {
			fs.do(func() {
				if !linked[i] {
					sites[i].attach()
				}
				for _, svc := range sites[i].session.services {
					services[svc] = true
				}
				fs.silent = true
			})
		}
		for start := time.Now(); r.Status(t.Context()).Visitors > 0 && time.Since(start) < patience; time.Sleep(10 * time.Millisecond) {
			for _, c := range clients {
				c.send([]byte{0, 5, 0, 0, 0})
			}
		}
		st := r.settled()
		if st.TFTP.Running != 0 || st.TFTP.Unproven != 0 {
			t.Errorf("%+v", st.TFTP)
		}
		if n := len(r.admission.addrs); n > 0 || r.admission.spare > 0 {
			t.Errorf("%d addresses, %d spare", n, r.admission.spare)
		}
		for i, fs := range stores {
			left := -1
			for start := time.Now(); left != 0 && time.Since(start) < patience; time.Sleep(time.Millisecond) {
				fs.do(func() {
					for _, f := range fs.open {
						f.CloseWrite() // of those that only wait for that
					}
					left = sites[i].session.tun.Stats().Streams
				})
			}
			if left > 0 {
				t.Errorf("%d streams are left", left)
			}
		}
		stores[0].do(func() {
			for svc := range services {
				if len(svc.visits)+len(svc.latest)+svc.visitors+len(svc.held)+len(svc.session.held) > 0 || svc.asking != nil || svc.tally.tftp.visits != nil {
					t.Errorf("of a service is left: %d visits, %d latest, %d visitors, %v, %v, %v", len(svc.visits), len(svc.latest), svc.visitors, svc.held, svc.session.held, svc.asking)
				}
			}
		})
		svc := office(st).Services
		var ends uint64
		for _, n := range svc[0].Errors {
			ends += n
		}
		if ends != svc[0].Total+svc[0].TFTP.Refused {
			t.Errorf("%d transfers and %d refusals have ended %d times: %v", svc[0].Total, svc[0].TFTP.Refused, ends, svc[0].Errors)
		}
		t.Log(len(services), "services,", svc[0].Total, "transfers,", svc[0].TFTP.Refused, "refused:", svc[0].Errors)
	})
}
