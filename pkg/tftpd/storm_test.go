package tftpd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
)

// counted is a Store that counts what is asked of another one, on its loop.
type counted struct {
	Store
	asked, same int
}

func (s *counted) Open(l *evloop.Loop, r *Open, done func(*File, error)) func() {
	s.asked++
	return s.Store.Open(l, r, func(f *File, err error) {
		if err == nil && f.Same {
			s.same++
		}
		done(f, err)
	})
}

// got is a file that a Client gets, as it comes.
type got struct {
	*Remote
	data []byte
	done func(data []byte, err error)
}

func (g *got) OnData(b []byte) int { g.data = append(g.data, b...); return len(b) }
func (g *got) OnDrain()            {}

func (g *got) OnEOF() {
	g.tell(nil)
	g.Close()
}

func (g *got) OnClose(err error) { g.tell(err) }

func (g *got) tell(err error) {
	if done := g.done; done != nil {
		g.done = nil
		done(g.data, err)
	}
}

// A rack boots: each file is read from its folder once, and a new one is there as soon as it is written.
func TestRackBoots(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		t.Parallel()
		dir := t.TempDir()
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		image, tiny := text(300_000), []byte("default linux\n")
		for name, data := range map[string][]byte{"image": image, "tiny": tiny} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(filepath.Join(dir, name), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		store := &counted{Store: &Folder{Root: root, Write: "replace"}}
		cache := NewCache(1 << 20)
		b := newBench(t, w, func(b *bench) {
			b.share.Store = store
			b.share.Library = NewLibrary(b.share.Loop, store, cache)
		})
		var all sync.WaitGroup
		l := b.core.Loop(1)
		get := func(c *Client, name string, want []byte) {
			all.Add(1)
			done := func(data []byte, err error) {
				if err != nil || !bytes.Equal(data, want) {
					t.Errorf("%s: %d bytes of %d, error %v", name, len(data), len(want), err)
				}
				all.Done()
			}
			l.Post(func() {
				c.Get(l, b.Addr().String(), "boot/"+name, func(r *Remote, err error) {
					if err != nil {
						done(nil, err)
						return
					}
					r.SetHandler(&got{Remote: r, done: done})
				})
			})
		}
		want := func(asked, same, fetches int) {
			t.Helper()
			b.settled()
			on(b.share.Loop, func() {
				if s := cache.Stats(); store.asked != asked || store.same != same || s.Fetches != uint64(fetches) {
					t.Errorf("asked %d times, %d the same, %+v", store.asked, store.same, s)
				}
			})
		}
		checked := func(at time.Time) { // what is known was
			on(b.share.Loop, func() {
				for _, e := range b.share.Library.files {
					e.checked = at
				}
			})
		}
		clients := []*Client{{}, {Plain: true}}
		for i := range 60 {
			get(clients[i%2], "image", image)
			get(clients[i%2], "tiny", tiny)
			if i == 0 {
				all.Wait()
				checked(time.Now().Add(time.Hour)) // however slow this machine is
			}
		}
		all.Wait()
		want(2, 0, 2)
		if s := cache.Stats(); s.Images != 2 || s.Bytes != int64(len(image)+len(tiny)+2*imageCost) || s.Idle != s.Bytes || s.Hits != 118 {
			t.Errorf("%+v", s)
		}
		checked(time.Now().Add(-trustTime))
		get(clients[0], "image", image)
		all.Wait()
		want(3, 1, 2)

		// Who asks after a file has been written gets that one.
		next := text(200_000)
		all.Add(1)
		l.Post(func() {
			clients[0].Put(l, b.Addr().String(), "boot/image", int64(len(next)), func(r *Remote, err error) {
				if err != nil {
					t.Error(err)
					all.Done()
					return
				}
				r.SetHandler(&got{Remote: r, done: func(_ []byte, err error) {
					if err != nil {
						t.Error(err)
					}
					all.Done()
				}})
				r.Write(next)
				r.CloseWrite()
			})
		})
		all.Wait()
		get(clients[0], "image", next)
		all.Wait()
		want(5, 1, 3)

		// Requests that prove nothing get no place.
		before := cache.Stats()
		for i := range 50 {
			name := fmt.Sprint(i)
			if err := os.WriteFile(filepath.Join(dir, name), image, 0o644); err != nil {
				t.Fatal(err)
			}
			c := b.client()
			if _, err := c.Write(request(1, "boot/"+name, "octet", "tsize", "0")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		if s := cache.Stats(); s.Bytes != before.Bytes || s.Evicted != 0 || s.Fetches != before.Fetches+50 {
			t.Errorf("%+v, before: %+v", s, before)
		}
	})
}
