package public

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

func TestStore(t *testing.T) {
	s := store{size: 31000}
	held := make([]int, 30)
	if !s.hold(&held[0], 15500) || s.hold(&held[0], 15501) {
		t.Error("one who is alone does not get half of it")
	}
	for range 200 { // all want as much as they can get
		for i := range held {
			s.hold(&held[i], s.share(held[i]))
		}
	}
	for i, n := range held {
		if n < 900 || n > 1100 {
			t.Errorf("number %d has %d", i, n)
		}
	}
	for i := range held {
		s.hold(&held[i], 0)
	}
	if s.used != 0 {
		t.Errorf("%d are in use by nobody", s.used)
	}
}

// Many cameras of a session keep no more than there is for all of them, those who watch lose nothing by that, and all of it
// is given back.
func TestManyHubs(t *testing.T) {
	share(t, func(c *sharedCamera) {
		const cameras, size = 40, 2 << 20
		_, frames := clip(t)
		streams := make(map[string]*tunnel.Stream)
		c.instead = func(st *tunnel.Stream, h relay.Header, m *rtsp.Message) bool {
			if string(m.Method) == "PLAY" {
				streams[h.Service] = st
			}
			return c.request(st, h, m)
		}
		var list []relay.Announcement
		for i := range cameras {
			name := fmt.Sprint("gate", i)
			list = append(list, relay.Announcement{Name: name, Publish: "rtsp://cams.test/" + name, TargetScheme: "rtsp", Camera: &relay.Camera{FanOut: true}})
		}
		c.announce(list...)
		s := c.site.session
		watchers, late := make([]testWatcher, cameras), make([]testWatcher, cameras)
		c.do(func() {
			s.store.size = size
			for i := range watchers {
				s.services[i].watch(&watchers[i])
			}
		})
		kept, most := 0, 0
		look := func() {
			c.t.Helper()
			c.do(func() {
				used := 0
				kept = 0
				for _, svc := range s.services {
					h := svc.hub
					if used += h.held; h.held != h.room+cap(h.log)*packetCost {
						t.Fatalf("%s has %d and says %d", svc.name, h.room+cap(h.log)*packetCost, h.held)
					}
					if h.kept {
						kept++
					}
				}
				if used != s.store.used || used > size {
					t.Fatalf("%d are in use, %d in sum, of %d", s.store.used, used, size)
				}
				if len(s.loop.pieces) > maxPieces {
					t.Fatalf("%d pieces are spare", len(s.loop.pieces))
				}
				most = max(most, used)
			})
		}
		const rounds = 4
		var pictures [][][]byte
		for n := range rounds {
			pictures = append(pictures, apart(large(shifted(frames, n)))...)
		}
		join := len(pictures) - 5 // in the middle of the last group
		for n, picture := range pictures {
			if n == join {
				c.do(func() {
					for i := range late {
						s.services[i].watch(&late[i])
					}
				})
				look()
				if kept == 0 || kept == cameras {
					t.Errorf("%d of %d have kept their group", kept, cameras)
				}
			}
			c.do(func() {
				for _, svc := range s.services {
					for _, f := range picture {
						streams[svc.name].Write(f)
					}
				}
			})
			look()
		}
		if most < size/2 {
			t.Errorf("no more than %d are used", most)
		}
		begun := 0
		for i := range watchers {
			watchers[i].wants(t, s.services[i].name, 20*rounds, 2*rounds)
			if len(late[i].packets) > 0 {
				late[i].wants(t, "who is late", 10, 1)
				begun++
			}
		}
		if begun == 0 || begun == cameras {
			t.Errorf("%d of %d late ones have begun", begun, cameras)
		}

		// The others do with the next key frame.
		c.do(func() {
			for _, svc := range s.services {
				for _, f := range frames {
					streams[svc.name].Write(f)
				}
			}
		})
		look()
		for i := range late {
			if all, _ := late[i].frames(); all < 10 {
				t.Errorf("camera %d: who was late has %d frames", i, all)
			}
		}
		c.do(func() {
			for i := range watchers {
				s.services[i].unwatch(&watchers[i])
				s.services[i].unwatch(&late[i])
			}
		})
		time.Sleep(hubRest + time.Second)
		synctest.Wait()
		c.do(func() {
			if s.store.used != 0 {
				t.Errorf("%d are in use when nobody watches", s.store.used)
			}
		})
	})
}

// Where hardly anything is kept, browsers get all of what comes, and who comes later begins with a key frame.
func TestLiveWithoutStore(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		sdp, frames := clip(t)
		c := newLiveCamera(t, r, sdp)
		onLoop(c.site.session.loop.Loop, func() { c.site.session.store.size = 64 << 10 })
		one := c.premiere(client, frames)
		one.begin()
		one.fragments(19)
		for n := range 4 {
			for _, picture := range apart(large(shifted(frames, n+1))) {
				c.send(picture...)
				one.fragments(1)
			}
			c.look(func(s *service) {
				b := s.broadcast
				if b.held != b.muxer.Size() || b.held+s.hub.held != s.session.store.used || s.session.store.used > s.session.store.size {
					t.Errorf("%d are in use, %d for browsers, who have %d", s.session.store.used, b.held, b.muxer.Size())
				}
			})
		}
		got := make(chan *film)
		go func() { got <- watchLive(t, client) }()
		waitFor(t, func() (there bool) {
			c.look(func(s *service) { there = len(s.broadcast.viewers) == 2 })
			return there
		})
		pictures := apart(large(shifted(frames, 5)))
		c.send(pictures[0]...)
		c.send(pictures[1]...)
		two := <-got
		two.begin()
		if samples, at := two.fragments(1); samples[0].IsNonSyncSample || at[0] != 100*9000 {
			t.Errorf("who comes later begins at %d, key frame: %v", at[0], !samples[0].IsNonSyncSample)
		}
		one.res.Body.Close()
		two.res.Body.Close()
		next := 2
		waitFor(t, func() (gone bool) {
			if next < len(pictures) { // what cannot be sent tells that they have gone
				c.send(pictures[next]...)
				next++
			}
			c.look(func(s *service) { gone = s.broadcast == nil && s.session.store.used == s.hub.held })
			return gone
		})
	})
}
