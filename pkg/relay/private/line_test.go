package private

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/link"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// whole reports an error unless d ended well, with the bytes of the digest.
func (w *world) whole(d *download, digest [32]byte) {
	w.t.Helper()
	if err := <-d.closed; err != nil {
		w.t.Error(err)
		return
	}
	if _, body, _ := bytes.Cut(d.got.Bytes(), []byte("\r\n\r\n")); sha256.Sum256(body) != digest {
		w.t.Errorf("%d bytes came, and not those of the file", len(body))
	}
}

// wantRoles reports an error unless the hub has links of these roles.
func (w *world) wantRoles(want ...string) {
	w.t.Helper()
	synctest.Wait()
	w.on(func() {
		var got []string
		for _, role := range w.hub.links {
			got = append(got, role)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			w.t.Errorf("links %q, want %q", got, want)
		}
	})
}

// wantLines reports an error unless the lines of the first relay are in these states.
func (w *world) wantLines(want string) {
	w.t.Helper()
	synctest.Wait()
	var got []string
	for _, l := range w.relay.Status().Relays[0].Lines {
		got = append(got, l.Role+" "+l.State)
	}
	if s := strings.Join(got, ", "); s != want {
		w.t.Errorf("%s; want %s", s, want)
	}
}

// A session has a link for what people wait for and one for the rest. Whichever is cut, the other one carries the
// streams, and the lost one is back at once; so are both when both are cut.
func TestTwoLinks(t *testing.T) {
	machine := strings.Repeat("12", 16)
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		w.wantLines("interactive linked, bulk linked")
		w.on(func() {
			first, second := w.hub.hellos[0], w.hub.hellos[1]
			if first.Session != "" || first.Links != 0 || first.Role != "interactive" {
				t.Errorf("first %+v", first)
			}
			if second.Session != w.hub.id || second.Links != 1 || second.Role != "bulk" {
				t.Errorf("second %+v", second)
			}
			if first.Machine != machine || second.Machine != machine || len(first.Process) != 32 || first.Process != second.Process {
				t.Errorf("machine %q, process %q and %q", first.Machine, first.Process, second.Process)
			}
			if first.Choice != "wss: the configuration says so" {
				t.Errorf("choice %q", first.Choice)
			}
		})

		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		for _, role := range []string{"bulk", "interactive"} {
			time.Sleep(stableLink)
			memnet.Cut(w.conn(role))
			w.wantRoles("bulk", "interactive") // with no time gone by
		}
		w.on(func() {
			if n := len(w.hub.hellos); n != 4 || w.hub.hellos[2].Links != 1 || w.hub.hellos[3].Links != 1 {
				t.Errorf("%d links, the last %+v", n, w.hub.hellos[n-1])
			}
		})
		if w.log.count("level=WARN") != 0 || w.log.count(`msg="link lost, trying again; the other links go on"`) != 2 {
			t.Error("two losses make two lines, and are no reason to worry")
		}

		time.Sleep(stableLink)
		w.net.Cut()
		w.wantRoles("bulk", "interactive")
		w.on(func() {
			for _, h := range w.hub.hellos[4:] {
				if h.Session != w.hub.id {
					t.Errorf("after both were cut: %+v", h)
				}
			}
		})
		w.on(d.stream.Resume)
		w.whole(d, digest)
		w.on(func() {
			if len(w.hub.announced) != 1 {
				t.Errorf("%d announcements", len(w.hub.announced))
			}
		})
	}, twoLinks, func(w *world) { w.relay.Machine = machine })
}

// A link that is being dialled while the lines change their roles does not take the place of the one that works.
func TestRoleWhileDialling(t *testing.T) {
	files, _ := folder(t, "files", 1)
	blocked := make(chan chan struct{}, 1)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		hold := make(chan struct{})
		blocked <- hold
		time.Sleep(stableLink)
		memnet.Cut(w.conn("interactive"))
		w.wantLines("interactive dialling, bulk linked")
		p := w.relay.peers[0]
		done := make(chan struct{})
		p.loop.Post(func() {
			p.lines[1].setRole(tunnel.RoleInteractive)
			p.lines[0].setRole(tunnel.RoleBulk)
			close(done)
		})
		<-done
		close(hold)
		time.Sleep(time.Second)
		w.on(func() {
			if len(w.hub.ends) != 1 || len(w.hub.links) != 2 {
				t.Errorf("%d links, the others ended with %v", len(w.hub.links), w.hub.ends)
			}
			if last := w.hub.hellos[len(w.hub.hellos)-1]; last.Role != relay.RoleBulk {
				t.Errorf("the last one came as %s", last.Role)
			}
		})
	}, twoLinks, func(w *world) {
		w.relay.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case hold := <-blocked:
				<-hold // whatever the context says
			default:
			}
			return w.dial(ctx, network, address)
		}
	})
}

// Fifty transfers go on while one link or the other is cut every second for a minute, and now and then both.
func TestCutStorm(t *testing.T) {
	files, digest := folder(t, "files", 1<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		w.wantRoles("bulk", "interactive")
		var all []*download
		for range 50 {
			all = append(all, w.get("files", "/big"))
		}
		for i := range 60 {
			time.Sleep(time.Second)
			switch {
			case i%10 == 9:
				w.net.Cut()
			case i%2 == 0:
				memnet.Cut(w.conn("interactive"))
			default:
				memnet.Cut(w.conn("bulk"))
			}
		}
		w.on(func() {
			if w.hub.session.Stats().Streams == 0 {
				t.Error("the transfers had ended before the minute")
			}
		})
		for _, d := range all {
			w.whole(d, digest)
		}
		time.Sleep(maxWait)
		w.wantRoles("bulk", "interactive")
		w.on(func() {
			if len(w.hub.announced) != 1 {
				t.Errorf("%d sessions", len(w.hub.announced))
			}
		})
	}, twoLinks, func(w *world) { w.net.Delay, w.net.Buffer = 50*time.Millisecond, 32<<10 })
}

// A link that swallows everything is replaced long before its ping is overdue, while the other one goes on; and when
// the replacement cannot be made, the link is used again as soon as it works.
func TestSilentLink(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	for _, role := range []string{"interactive", "bulk"} {
		inWorld(t, []Service{files}, func(t *testing.T, w *world) {
			w.wantRoles("bulk", "interactive")
			time.Sleep(stableLink)
			start := time.Now()
			memnet.Silence(w.conn(role), true)
			d := w.get("files", "/big")
			w.whole(d, digest)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%s: the transfer took %v", role, took)
			}
			time.Sleep(15 * time.Second) // until the hub has found out, too
			w.wantRoles("bulk", "interactive")
			w.wantLines("interactive linked, bulk linked")
			if w.log.count("level=WARN") != 0 || w.log.count(`msg="link is silent, dialling another one for it"`) != 1 {
				t.Error("the log does not tell it")
			}
		}, twoLinks)
	}
}

// The machine has another address: nothing arrives on the old connections, and new ones work.
func TestNewAddress(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		time.Sleep(stableLink)
		start := time.Now()
		memnet.Silence(w.conn("interactive"), true)
		memnet.Silence(w.conn("bulk"), true)
		w.on(d.stream.Resume)
		w.whole(d, digest)
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("the transfer took %v", took)
		}
	}, twoLinks)
}

// The relay has restarted. Its streams end as soon as it is reached again, even if one link does not tell that it is
// dead, and new ones work.
func TestRelayRestart(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	for _, deaf := range []string{"", "interactive", "bulk"} {
		inWorld(t, []Service{files}, func(t *testing.T, w *world) {
			w.wantRoles("bulk", "interactive")
			d := w.get("files", "/big")
			w.on(d.stream.Pause)
			time.Sleep(stableLink)
			start := time.Now()
			if deaf != "" {
				memnet.Silence(w.conn(deaf), true)
			}
			w.on(func() {
				old := w.hub.session
				w.hub.session = nil
				for l, role := range w.hub.links {
					if role != deaf {
						l.Close(errors.New("killed"))
					}
				}
				old.Close(errors.New("killed"))
			})
			for w.log.count("the relay has forgotten it") == 0 && time.Since(start) < time.Minute {
				time.Sleep(10 * time.Millisecond)
			}
			w.relay.services.Load().byName["files"].files.Wait() // its handler has ended
			if took := time.Since(start); took > 2*time.Second || deaf == "" && took > 100*time.Millisecond {
				t.Errorf("the stream ended after %v", took)
			}
			time.Sleep(2 * time.Second)
			w.wantLines("interactive linked, bulk linked")
			w.whole(w.get("files", "/big"), digest)
		}, twoLinks)
	}
}

// Somebody who knows nothing of the session answers the second line, while the first one is alive: that ends nothing.
func TestStranger(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		w.wantRoles("interactive")
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		for range 10 {
			time.Sleep(3 * time.Second)
			w.wantRoles("interactive")
		}
		w.wantLines("interactive linked, bulk waiting")
		if n := w.log.count("does the address stand for several relays"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		w.on(d.stream.Resume)
		w.whole(d, digest)
	}, twoLinks, func(w *world) { w.hub.strange = "bulk" })
}

// A second link that is not let in for now is asked for again, ever more slowly; one that is refused for good ends Run.
func TestSecondLinkRefused(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		w.on(func() {
			w.hub.refusal, w.hub.refusals = &relay.Refusal{Code: relay.RefuseBusy, Message: "too many links", Retry: true}, "bulk"
		})
		time.Sleep(time.Second)
		memnet.Cut(w.conn("bulk"))
		time.Sleep(10 * time.Minute)
		w.wantRoles("interactive")
		w.on(func() {
			if n := len(w.hub.hellos); n < 20 || n > 60 {
				t.Errorf("%d tries in ten minutes", n)
			}
		})
		if s := w.relay.Status().Relays[0]; !s.Linked || s.Problem != "" || !strings.Contains(s.Lines[1].Problem, "too many links") {
			t.Errorf("status %+v", s)
		}
		if n := w.log.count("too many links"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		w.on(func() { w.hub.refusal.Retry = false })
		if err := <-w.done; err == nil || !strings.Contains(err.Error(), "too many links (busy)") {
			t.Error(err)
		}
	}, twoLinks)
}

// Both links are told that the session is over when a drain has ended.
func TestDrainTwoLinks(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		time.Sleep(time.Second)
		start := time.Now()
		w.cancel()
		time.Sleep(2 * time.Second)
		memnet.Cut(w.conn("bulk")) // it is needed no more, and yet
		time.Sleep(8 * time.Second)
		w.on(func() {
			header, _ := relay.Header{Kind: relay.KindConnect, Service: "files"}.Append(nil)
			if _, err := w.hub.session.Open(header); !errors.Is(err, tunnel.ErrDraining) {
				t.Errorf("a stream in a drain: %v", err)
			}
			d.stream.Resume()
		})
		w.whole(d, digest)
		if err := <-w.done; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		w.on(func() {
			if len(w.hub.links) != 0 {
				t.Errorf("%d links are left", len(w.hub.links))
			}
			for _, err := range w.hub.ends[1:] { // but for the one that was cut
				if c, ok := errors.AsType[*link.CloseError](err); err != nil && (!ok || c.Status != link.StatusOver) {
					t.Errorf("a link ended with %v", err)
				}
			}
		})
	}, twoLinks)
}

// Flows have no end, and a drain does not wait for one.
func TestDrainFlows(t *testing.T) {
	inWorld(t, []Service{published(t, tcpService(t, "dns", "udp://127.0.0.1:53"), "udp://:5353")}, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		closed := make(chan error, 1)
		w.on(func() {
			header, err := relay.Header{Kind: relay.KindFlow, Service: "dns", Scheme: "udp"}.Append(nil)
			if err != nil {
				t.Error(err)
			}
			s, err := w.hub.session.Open(header)
			if err != nil {
				t.Error(err)
				return
			}
			s.SetHandler(&download{stream: s, closed: closed})
		})
		time.Sleep(10 * time.Second)
		start := time.Now()
		w.cancel()
		if err := <-w.done; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
		var reset *tunnel.StreamError
		if err := <-closed; !errors.As(err, &reset) || reset.Code != tunnel.CodeCancelled {
			t.Errorf("the flow ended with %v", err)
		}
	}, twoLinks)
}

// A link that the relay puts aside is replaced; when the relay says on one that the session is over, it is over on
// the other one as well, and a new one begins.
func TestClosedByRelay(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.wantRoles("bulk", "interactive")
		time.Sleep(stableLink)
		w.on(func() {
			for l, role := range w.hub.links {
				if role == "bulk" {
					l.Close(nil)
				}
			}
		})
		w.wantRoles("bulk", "interactive")
		w.on(func() {
			if n := len(w.hub.hellos); n != 3 || w.hub.hellos[2].Session != w.hub.id {
				t.Errorf("%d links, the last %+v", n, w.hub.hellos[n-1])
			}
		})

		time.Sleep(stableLink)
		w.on(func() {
			old := w.hub.session
			w.hub.session = nil
			old.Close(nil)
		})
		w.wantRoles("bulk", "interactive")
		w.wantAnnounced(1)
		w.on(func() {
			if n := len(w.hub.hellos); n != 5 || w.hub.hellos[3].Session != "" || w.hub.hellos[3].Role != "interactive" {
				t.Errorf("%d links: %+v", n, w.hub.hellos[3:])
			}
		})
		if w.log.count("level=WARN") != 0 || w.log.count("session ended by the relay") != 1 {
			t.Error("it is not an accident")
		}
	}, twoLinks)
}

// A private relay learns with its links whether visitors come to it, and later by a notice.
func TestStandby(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		synctest.Wait()
		if !w.relay.Status().Relays[0].Standby || w.log.count("standing by") != 1 {
			t.Error("it does not stand by")
		}
		if w.ready.Load() != 1 {
			t.Error("a stand-by is ready, too")
		}
		notice := func(service string) {
			w.on(func() {
				w.hub.standby = service == relay.NoticeStandby
				header, err := relay.Header{Kind: relay.KindNotice, Service: service}.Append(nil)
				if err != nil {
					t.Error(err)
				}
				s, err := w.hub.session.Open(header)
				if err != nil {
					t.Error(err)
					return
				}
				d := &download{stream: s, closed: make(chan error, 1)}
				s.SetHandler(d)
				s.CloseWrite()
			})
			synctest.Wait()
			time.Sleep(time.Second)
		}
		notice(relay.NoticeActive)
		if w.relay.Status().Relays[0].Standby || w.log.count("active: ") != 1 {
			t.Error("it is not active")
		}
		notice(relay.NoticeStandby)
		if !w.relay.Status().Relays[0].Standby || w.log.count("standing by") != 2 {
			t.Error("it does not stand by again")
		}
		w.on(func() {
			if n := w.hub.session.Stats().Streams; n != 0 {
				t.Errorf("%d streams are left", n)
			}
		})
	}, func(w *world) { w.hub.standby = true })
}

// A site has a session with each of two relays. One of them dies, and the visitors of the other one do not notice.
func TestTwoRelays(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	var other *hub
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		time.Sleep(time.Second)
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		if s := w.relay.Status().Relays; len(s) != 2 || !s[0].Linked || !s[1].Linked || len(s[0].Lines) != 2 || len(s[1].Lines) != 2 {
			t.Errorf("status %+v", s)
		}
		done := make(chan struct{})
		other.loop.Post(func() {
			other.refusal = &relay.Refusal{Code: relay.RefuseInternal, Message: "dying", Retry: true}
			for l := range other.links {
				l.Close(errors.New("killed"))
			}
			other.session.Close(nil)
			close(done)
		})
		<-done
		time.Sleep(20 * time.Second)
		w.wantRoles("bulk", "interactive")
		if s := w.relay.Status().Relays; !s[0].Linked || s[0].Problem != "" || s[1].Linked || !strings.Contains(s[1].Problem, "dying") {
			t.Errorf("status %+v", s)
		}
		w.on(d.stream.Resume)
		w.whole(d, digest)
		w.on(func() {
			if n := len(w.hub.hellos); n != 2 {
				t.Errorf("%d links to the one that lives", n)
			}
		})
		other.core.Close()
	}, twoLinks, func(w *world) {
		other = newHub(w.t, w.hub.tls, newCore(w.t))
		ln, err := w.net.Listen("relay.example.com:8443")
		if err != nil {
			w.t.Fatal(err)
		}
		other.core.Serve(ln, other.accept)
		w.relay.Relays = append(w.relay.Relays, "relay.example.com:8443")
	})
}
