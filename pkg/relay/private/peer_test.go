package private

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// hub is a public relay as far as a private one can tell. Its fields belong to its loop.
type hub struct {
	t    *testing.T
	core *evloop.Core
	loop *evloop.Loop
	tls  *tls.Config

	refusal  *relay.Refusal // for the next links, or nil
	refusals string         // the role of the links that it is for, or "" for all
	standby  bool           // what the next links are told
	strange  string         // the role of links that reach a relay which does not know the session
	refused  map[string]string
	resets   []tunnel.Code // for the next announcements

	hellos    []relay.Hello
	dialled   []time.Time // when each of them came
	announced [][]relay.Announcement
	choice    string // that the last notice told
	session   *link.Session
	id        string
	links     map[*link.Link]string // those that live, with their roles
	ends      []error               // of the others
	remotes   map[string]string     // address of the newest connection by role
}

// world is a network with a public and a private relay.
type world struct {
	t     *testing.T
	net   *memnet.Network
	hub   *hub
	relay *Relay
	log   *logBuffer
	ready atomic.Int32

	cancel context.CancelFunc
	done   chan error // gets the value of Run
	core   *evloop.Core

	mu    sync.Mutex
	conns map[string]net.Conn // of the private relay, by local address
}

// logBuffer collects the lines of a logger, without their time.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// count returns how many lines contain s.
func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

const hubAddress = "relay.example.com:443"

// inWorld runs f in a world whose clock is the test's, with a private relay that has the services. The options
// change the world before the relay runs.
func inWorld(t *testing.T, services []Service, f func(t *testing.T, w *world), options ...func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: &memnet.Network{}, log: &logBuffer{}, done: make(chan error, 1)}
		dir := t.TempDir()
		c, err := auth.DevCA(dir, "relay.example.com")
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)

		w.hub = newHub(t, &tls.Config{Certificates: []tls.Certificate{pair}}, newCore(t))
		ln, err := w.net.Listen(hubAddress)
		if err != nil {
			t.Fatal(err)
		}
		w.hub.core.Serve(ln, w.hub.accept)

		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.core = newCore(t)
		w.relay = &Relay{
			Core: w.core, Relays: []string{hubAddress}, Site: "office", Key: key, RootCAs: roots, Services: services,
			DrainTimeout: 30 * time.Second, Software: "test",
			Log:     slog.New(slog.NewTextHandler(io.MultiWriter(w.log, t.Output()), nil)),
			OnReady: func() { w.ready.Add(1) },
			Dial:    w.dial,
		}
		w.conns = make(map[string]net.Conn)
		for _, o := range options {
			o(w)
		}
		var ctx context.Context
		ctx, w.cancel = context.WithCancel(t.Context())
		go w.run(ctx)
		f(t, w)
		w.cancel()
		w.on(func() {
			if w.hub.session != nil {
				w.hub.session.Close(nil)
			}
		})
		<-w.done
		w.core.Close()
		w.hub.core.Close()
	})
}

func newHub(t *testing.T, tls *tls.Config, core *evloop.Core) *hub {
	h := &hub{t: t, core: core, tls: tls, refused: make(map[string]string)}
	h.links, h.remotes = make(map[*link.Link]string), make(map[string]string)
	h.loop = h.core.Loop(0)
	return h
}

// twoLinks is an option: what relay-private does if it is not told otherwise.
func twoLinks(w *world) { w.relay.Links = 2 }

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := w.net.Dial(ctx, network, address)
	if err == nil {
		w.mu.Lock()
		w.conns[c.LocalAddr().String()] = c
		w.mu.Unlock()
	}
	return c, err
}

// conn is the private relay's end of the newest link with a role.
func (w *world) conn(role string) net.Conn {
	var address string
	w.on(func() { address = w.hub.remotes[role] })
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[address]
}

func (w *world) run(ctx context.Context) {
	w.done <- w.relay.Run(ctx)
	close(w.done)
}

func newCore(t *testing.T) *evloop.Core {
	core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
	if err != nil {
		t.Fatal(err)
	}
	return core
}

// on runs f on the hub's loop.
func (w *world) on(f func()) {
	done := make(chan struct{})
	w.hub.loop.Post(func() { f(); close(done) })
	<-done
}

func (h *hub) accept(c *evloop.Conn) {
	c.StartTLS(h.tls, false, 10*time.Second, func(err error) {
		if err == nil {
			c.SetHandler(&request{c, h})
		}
	})
}

// request waits for the end of the request for a link.
type request struct {
	conn *evloop.Conn
	hub  *hub
}

func (r *request) OnData(b []byte) int {
	head, _, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return 0
	}
	for line := range strings.Lines(string(head)) {
		if name, value, _ := strings.Cut(line, ": "); strings.EqualFold(name, "Sec-WebSocket-Key") {
			link.Accept(r.conn, strings.TrimSpace(value), func(in *link.Incoming, err error) {
				r.hub.hello(in, r.conn.RemoteAddr().String(), err)
			})
		}
	}
	return len(head) + 4
}
func (r *request) OnEOF()        { r.conn.Close() }
func (r *request) OnDrain()      {}
func (r *request) OnClose(error) {}

func (h *hub) hello(in *link.Incoming, remote string, err error) {
	if err != nil {
		h.t.Log(err) // it was cut
		return
	}
	role := in.Hello.Role
	h.hellos = append(h.hellos, in.Hello)
	h.dialled = append(h.dialled, time.Now())
	if h.refusal != nil && (h.refusals == "" || h.refusals == role) {
		in.Refuse(*h.refusal)
		return
	}
	w := relay.Welcome{Resume: strings.Repeat("ab", 32), Software: "hub", Active: !h.standby}
	if role == h.strange {
		w.Session = strings.Repeat("99", 16)
		l := in.Welcome(w)
		s := link.NewSession(h.loop, tunnel.Config{})
		l.Serve(s, in.Role(), func(*link.Link, error) { s.Close(nil) })
		return
	}
	if w.Resumed = h.session != nil && in.Hello.Session == h.id; !w.Resumed {
		h.id = fmt.Sprintf("%032x", len(h.hellos))
		h.session = link.NewSession(h.loop, tunnel.Config{Accept: h.stream})
	} else if in.Hello.Links == 0 {
		for l := range h.links {
			l.Close(errors.New("the private relay has lost it"))
		}
	}
	w.Session = h.id
	l := in.Welcome(w)
	h.links[l], h.remotes[role] = role, remote
	l.Serve(h.session, in.Role(), func(l *link.Link, err error) {
		delete(h.links, l)
		h.ends = append(h.ends, err)
	})
}

// stream takes an announcement or a notice.
func (h *hub) stream(s *tunnel.Stream, header []byte) {
	head, err := relay.DecodeHeader(header)
	switch {
	case err == nil && head.Kind == relay.KindNotice && head.Service == relay.NoticeChoice:
		h.choice = head.Host
		s.SetHandler(&download{stream: s, closed: make(chan error, 1)})
		return
	case err != nil || head.Kind != relay.KindAnnounce:
		h.t.Errorf("header %+v, %v", head, err)
	}
	if len(h.resets) > 0 {
		s.Reset(h.resets[0])
		h.resets = h.resets[1:]
		return
	}
	s.SetHandler(&announceStream{hub: h, stream: s})
}

type announceStream struct {
	hub    *hub
	stream *tunnel.Stream
	b      []byte
}

func (a *announceStream) OnData(b []byte) int { a.b = append(a.b, b...); return len(b) }
func (a *announceStream) OnDrain()            {}
func (a *announceStream) OnClose(error)       {}
func (a *announceStream) OnEOF() {
	list, err := relay.DecodeAnnounce(a.b)
	if err != nil {
		a.hub.t.Error(err)
	}
	a.hub.announced = append(a.hub.announced, list)
	var replies []relay.AnnounceReply
	for _, one := range list {
		replies = append(replies, relay.AnnounceReply{Name: one.Name, Error: a.hub.refused[one.Name], Addresses: []string{one.Publish}})
	}
	a.stream.Write(relay.Encode(replies))
	a.stream.CloseWrite()
}

// download is a stream on which the hub fetches a file.
type download struct {
	stream *tunnel.Stream
	got    bytes.Buffer
	closed chan error
}

func (d *download) OnData(b []byte) int { d.got.Write(b); return len(b) }
func (d *download) OnEOF()              { d.stream.CloseWrite() }
func (d *download) OnDrain()            {}
func (d *download) OnClose(err error)   { d.closed <- err }

// get begins a download.
func (w *world) get(service, path string) *download {
	w.t.Helper()
	d := &download{closed: make(chan error, 1)}
	w.on(func() {
		header, err := relay.Header{Kind: relay.KindConnect, Service: service}.Append(nil)
		if err != nil {
			w.t.Error(err)
		}
		if d.stream, err = w.hub.session.Open(header); err != nil {
			w.t.Error(err)
			return
		}
		d.stream.SetHandler(d)
		fmt.Fprintf(streamWriter{d.stream}, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
	})
	return d
}

type streamWriter struct{ s *tunnel.Stream }

func (s streamWriter) Write(b []byte) (int, error) { s.s.Write(b); return len(b), nil }

// folder makes a service of a folder with one file of n random bytes, and returns their digest.
func folder(t *testing.T, name string, n int) (Service, [32]byte) {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return tcpService(t, name, "file://"+filepath.ToSlash(dir)), sha256.Sum256(b)
}

func published(t testing.TB, s Service, publish string) Service {
	t.Helper()
	var err error
	if s.Publish, err = relay.ParsePublish(publish); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) wantAnnounced(i int, want ...string) {
	w.t.Helper()
	synctest.Wait()
	w.on(func() {
		if len(w.hub.announced) <= i {
			w.t.Errorf("%d announcements", len(w.hub.announced))
			return
		}
		var got []string
		for _, a := range w.hub.announced[i] {
			got = append(got, strings.TrimSpace(a.Name+" "+a.Publish+" "+a.TargetScheme))
		}
		if !slices.Equal(got, want) {
			w.t.Errorf("announcement %d: %q, want %q", i, got, want)
		}
	})
}

// The site announces what it has when a session begins and at each reload; what the relay refuses is logged
// with its reason; readiness is reported once.
func TestAnnounce(t *testing.T) {
	files, _ := folder(t, "files", 1)
	services := []Service{published(t, files, "https://files.example.com"), tcpService(t, "ssh", "tcp://10.0.0.9:22")}
	inWorld(t, services, func(t *testing.T, w *world) {
		w.hub.loop.Post(func() { w.hub.refused["files"] = "not yours" })
		w.wantAnnounced(0, "files https://files.example.com file", "ssh  tcp")
		if w.log.count(`msg="service refused"`) != 1 || w.log.count(`service=files err="not yours"`) != 1 || w.log.count(`msg="service up"`) != 1 {
			t.Error("the refusal is not logged")
		}
		if err := w.relay.Reload(services[:1]); err != nil {
			t.Fatal(err)
		}
		w.wantAnnounced(1, "files https://files.example.com file")
		if n := w.ready.Load(); n != 1 {
			t.Errorf("ready %d times", n)
		}

		// A bad configuration changes nothing.
		if err := w.relay.Reload([]Service{tcpService(t, "gone", "file:///no/such/folder")}); err == nil {
			t.Error("a folder that is not there was accepted")
		}
		synctest.Wait()
		w.on(func() {
			if len(w.hub.announced) != 2 {
				t.Error("announced again")
			}
		})
		if got := w.relay.Status().Services; len(got) != 1 || got[0].Name != "files" {
			t.Errorf("services %+v", got)
		}
	})
}

// What the relay has no room for just now is announced again; what it forbids is not.
func TestAnnounceAgain(t *testing.T) {
	inWorld(t, []Service{tcpService(t, "ssh", "tcp://10.0.0.9:22")}, func(t *testing.T, w *world) {
		time.Sleep(minReannounce)
		w.on(func() {
			if len(w.hub.announced) != 0 {
				t.Error("there was no wait")
			}
		})
		time.Sleep(2*minReannounce + 4*minReannounce)
		w.wantAnnounced(0, "ssh  tcp")
		if n := w.log.count("did not take the services, trying again"); n != 1 {
			t.Errorf("%d lines", n)
		}
		w.on(func() { w.hub.resets = []tunnel.Code{tunnel.CodeForbidden} })
		if err := w.relay.Reload([]Service{tcpService(t, "ssh", "tcp://10.0.0.9:23")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * maxReannounce)
		w.on(func() {
			if len(w.hub.announced) != 1 || len(w.hub.resets) != 0 {
				t.Errorf("%d announcements, %d resets left", len(w.hub.announced), len(w.hub.resets))
			}
		})
		if w.log.count("level=ERROR") != 1 {
			t.Error("the log does not tell")
		}
	}, func(w *world) {
		w.hub.resets = []tunnel.Code{tunnel.CodeOverload, tunnel.CodeMemory, tunnel.CodeOverload}
	})
}

// A link is cut again and again in the middle of a download: no byte is lost, and nothing is announced again.
func TestResume(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		for range 3 {
			synctest.Wait()
			w.net.Cut()
			time.Sleep(2 * time.Second)
		}
		w.on(d.stream.Resume)
		if err := <-d.closed; err != nil {
			t.Fatal(err)
		}
		_, body, _ := bytes.Cut(d.got.Bytes(), []byte("\r\n\r\n"))
		if sha256.Sum256(body) != digest {
			t.Errorf("%d bytes came, and not those of the file", len(body))
		}
		w.on(func() {
			if len(w.hub.hellos) != 4 || len(w.hub.announced) != 1 {
				t.Errorf("%d links, %d announcements", len(w.hub.hellos), len(w.hub.announced))
			}
		})
		if s := w.relay.Status().Relays[0]; !s.Linked || s.Problem != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// A drain without a link waits for streams, and for nothing else.
func TestDrainWithoutLink(t *testing.T) {
	files, _ := folder(t, "files", 4<<20)
	for _, streams := range []bool{false, true} {
		inWorld(t, []Service{files}, func(t *testing.T, w *world) {
			time.Sleep(time.Second) // for the last acknowledgement of the announcement
			if streams {
				d := w.get("files", "/big")
				w.on(d.stream.Pause)
				synctest.Wait()
			}
			w.on(func() { w.hub.refusal = &relay.Refusal{Code: relay.RefuseBusy, Message: "no", Retry: true} })
			w.net.Cut()
			time.Sleep(10 * time.Second)
			start := time.Now()
			w.cancel()
			<-w.done
			if took := time.Since(start); streams != (took >= w.relay.DrainTimeout) || !streams && took > time.Second {
				t.Errorf("with streams %v: %v", streams, took)
			}
			w.relay.services.Load().byName["files"].files.Wait()
		})
	}
}

// A relay that has forgotten the session gets a new one, and the streams of the old one end at once.
func TestForgotten(t *testing.T) {
	files, _ := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		synctest.Wait()
		w.on(func() {
			old := w.hub.session
			w.hub.session = nil // it restarted
			old.Close(errors.New("restart"))
		})
		<-d.closed
		time.Sleep(2 * time.Second)
		w.wantAnnounced(1, "files  file")
		if w.log.count("the relay has forgotten it") != 1 {
			t.Error("not logged")
		}
		w.relay.services.Load().byName["files"].files.Wait() // its handler has ended
	})
}

// While the relay refuses for a reason that heals, the site goes on asking, ever more slowly, and says so once.
func TestBusy(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		w.on(func() {
			w.hub.refusal = &relay.Refusal{Code: relay.RefuseBusy, Message: "another one is here", Retry: true}
		})
		time.Sleep(10 * time.Minute)
		w.on(func() {
			if n := len(w.hub.hellos); n < 20 || n > 60 {
				t.Errorf("%d tries in ten minutes", n)
			}
			last := w.hub.dialled[len(w.hub.dialled)-1].Sub(w.hub.dialled[len(w.hub.dialled)-2])
			if last < maxWait/2 || last > maxWait+time.Second {
				t.Errorf("%v between the last tries", last)
			}
			w.hub.refusal = nil
		})
		if n := w.log.count("another one is here"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		if s := w.relay.Status().Relays[0]; s.Linked || !strings.Contains(s.Problem, "another one is here") {
			t.Errorf("status %+v", s)
		}
		time.Sleep(maxWait + time.Second)
		if n := w.ready.Load(); n != 1 {
			t.Error("not ready after the reason is gone")
		}
	})
}

// While streams wait for a link, the tries come at least once a second.
func TestImpatient(t *testing.T) {
	files, _ := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		synctest.Wait()
		w.on(func() { w.hub.refusal = &relay.Refusal{Code: relay.RefuseInternal, Message: "no", Retry: true} })
		w.net.Cut()
		time.Sleep(30 * time.Second)
		w.on(func() {
			if n := len(w.hub.hellos); n < 25 {
				t.Errorf("%d tries in 30 s", n)
			}
			w.hub.refusal = nil
		})
		time.Sleep(2 * time.Second)
		if !w.relay.Status().Relays[0].Linked {
			t.Error("not linked again")
		}
	})
}

// A refusal that waiting does not heal ends Run with the reason and what to do.
func TestRefused(t *testing.T) {
	for code, want := range map[relay.RefusalCode]string{
		relay.RefuseVersion:     "relay.example.com:443: refused: told so (version)",
		relay.RefuseUnknownSite: "relay.example.com:443: refused: told so (unknown-site): check site in the configuration, or join with a token from `tunnelctl site add`",
		relay.RefuseBadKey:      "relay.example.com:443: refused: told so (bad-key): check key in the configuration, or join again with a new token",
		relay.RefuseRevoked:     "relay.example.com:443: refused: told so (revoked)",
	} {
		t.Run(string(code), func(t *testing.T) {
			inWorld(t, nil, func(t *testing.T, w *world) {
				w.on(func() { w.hub.refusal = &relay.Refusal{Code: code, Message: "told so"} })
				w.net.Cut() // if it was faster than us
				if err := <-w.done; fmt.Sprint(err) != want {
					t.Errorf("%v\nwant %s", err, want)
				}
			})
		})
	}
}

// After SIGTERM a stream may finish, and then Run returns at once.
func TestDrain(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		synctest.Wait()
		begin := time.Now()
		w.cancel()
		time.Sleep(10 * time.Second)
		w.on(d.stream.Resume)
		if err := <-w.done; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("Run returned after %v", took)
		}
		if err := <-d.closed; err != nil {
			t.Error(err)
		}
		_, body, _ := bytes.Cut(d.got.Bytes(), []byte("\r\n\r\n"))
		if sha256.Sum256(body) != digest {
			t.Errorf("%d bytes came, and not those of the file", len(body))
		}
	})
}

// A stream that does not finish in time is cut, and the relay knows that the session is over.
func TestDrainTimeout(t *testing.T) {
	files, _ := folder(t, "files", 4<<20)
	inWorld(t, []Service{files}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := w.get("files", "/big")
		w.on(d.stream.Pause)
		synctest.Wait()
		begin := time.Now()
		w.cancel()
		if err := <-w.done; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("Run returned after %v", took)
		}
		if w.log.count("drain timeout: streams are cut") != 1 {
			t.Error("not logged")
		}
	})
}
