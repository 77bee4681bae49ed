package private

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
)

// realWorld is a world over the sockets of this machine, as QUIC needs them: a hub for both transports, and a private
// relay that is told to use one of them.
func realWorld(t *testing.T, transport string, services ...Service) *world {
	dir := t.TempDir()
	c, err := auth.DevCA(dir, "127.0.0.1")
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
	newCore := func() *evloop.Core {
		core, err := evloop.New(evloop.Config{Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	w := &world{t: t, log: &logBuffer{}, done: make(chan error, 1), core: newCore()}
	w.hub = newHub(t, &tls.Config{Certificates: []tls.Certificate{pair}}, newCore())
	ln := listenBoth(t)
	w.hub.core.Serve(ln, w.hub.accept)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.relay = &Relay{
		Core: w.core, Relays: []string{ln.Addr().String()}, Site: "office", Key: key, RootCAs: roots, Services: services,
		Transport: transport, Links: 2, Log: slog.New(slog.NewTextHandler(io.MultiWriter(w.log, t.Output()), nil)),
	}
	return w
}

// listenBoth listens at a port that is free over UDP, too, and stays so: the kernel gives it to nobody who wants any.
func listenBoth(t *testing.T) net.Listener {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000))
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		pc.Close()
		if ln, err := net.Listen("tcp", addr); err == nil {
			return ln
		}
	}
	t.Fatal("no port is free")
	return nil
}

func (w *world) begin() {
	ctx, cancel := context.WithCancel(context.Background())
	go w.run(ctx)
	w.t.Cleanup(func() {
		cancel()
		<-w.done
		w.on(func() {
			if w.hub.session != nil {
				w.hub.session.Close(nil)
			}
		})
		w.core.Close()
		w.hub.core.Close()
	})
}

// listenQUIC lets links in over QUIC, at the port at which the hub listens for the others, until stop.
func (w *world) listenQUIC() (stop func()) {
	pc, err := net.ListenPacket("udp", w.relay.Relays[0])
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := w.hub.tls.Clone()
	cfg.NextProtos = []string{link.ALPN}
	tr := &quic.Transport{Conn: pc}
	ln, err := tr.Listen(cfg, link.QUICConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			remote := conn.RemoteAddr().String()
			w.hub.loop.Post(func() {
				link.AcceptQUIC(w.hub.loop, conn, func(in *link.Incoming, err error) { w.hub.hello(in, remote, err) })
			})
		}
	}()
	return func() {
		w.on(func() {
			for l := range w.hub.links {
				if l.Transport() == link.QUIC {
					l.Close(errors.New("gone"))
				}
			}
		})
		tr.Close()
		pc.Close()
		<-done
	}
}

// eventually waits until the first relay's status is as ok wants it.
func (w *world) eventually(what string, ok func(PeerStatus) bool) {
	w.t.Helper()
	var s PeerStatus
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if all := w.relay.Status().Relays; len(all) > 0 {
			if s = all[0]; ok(s) {
				return
			}
		}
	}
	w.t.Fatalf("not %s: %+v", what, s)
}

func lines(s PeerStatus) string {
	var b strings.Builder
	for _, l := range s.Lines {
		b.WriteString(l.Transport + " " + l.Role + " " + l.State + "; ")
	}
	return b.String()
}

// With QUIC alone there is one link, for everything.
func TestQUICAlone(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	w := realWorld(t, TransportQUIC, files)
	defer w.listenQUIC()()
	w.begin()
	w.eventually("linked", func(s PeerStatus) bool { return lines(s) == "quic interactive linked; " })
	w.whole(w.get("files", "/big"), digest)
	if s := w.relay.Status().Relays[0]; s.Choice != "quic: the configuration says so" {
		t.Errorf("choice %q", s.Choice)
	}
}

// QUIC is tried beside the WebSocket links, which do not wait for it. When it is gone the WebSockets go on, and it is
// tried again.
func TestQUICBeside(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	w := realWorld(t, TransportAuto, files)
	w.begin()
	w.eventually("linked", func(s PeerStatus) bool {
		return lines(s) == "wss interactive linked; wss bulk linked; quic datagram dialling; " && s.Choice == "wss; quic is being tried"
	})
	w.eventually("without QUIC", func(s PeerStatus) bool {
		return strings.HasPrefix(s.Choice, "wss; quic does not get through: nothing comes back from 127.0.0.1:")
	})
	all := "wss interactive linked; wss bulk linked; quic datagram linked; "
	stop := w.listenQUIC()
	w.eventually("linked by QUIC", func(s PeerStatus) bool {
		return lines(s) == all && s.Choice == "wss for streams, quic for datagrams: loss does not hold the streams up"
	})
	d := w.get("files", "/big")
	w.on(d.stream.Pause)
	stop()
	w.eventually("without QUIC", func(s PeerStatus) bool { return s.Lines[2].State != "linked" })
	stop = w.listenQUIC()
	defer func() { stop() }()
	w.eventually("linked by QUIC again", func(s PeerStatus) bool { return lines(s) == all })
	w.on(d.stream.Resume)
	w.whole(d, digest)
	w.on(func() {
		if w.hub.choice != "wss for streams, quic for datagrams: loss does not hold the streams up" {
			t.Errorf("the relay was told: %q", w.hub.choice)
		}
	})
	if w.log.count("level=WARN") != 0 {
		t.Error("this is nothing to worry about")
	}
	for what, want := range map[string]int{"does not get through": 1, "transport=quic role=datagram resumed=true": 2} {
		if n := w.log.count(what); n != want {
			t.Errorf("%d times in the log: %s", n, what)
		}
	}
}

// While the WebSocket does not get through, QUIC makes the session.
func TestQUICInstead(t *testing.T) {
	files, digest := folder(t, "files", 4<<20)
	w := realWorld(t, TransportAuto, files)
	w.relay.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no TCP today") }
	defer w.listenQUIC()()
	w.begin()
	w.eventually("linked by QUIC", func(s PeerStatus) bool { return s.Linked && s.Lines[2].State == "linked" })
	w.whole(w.get("files", "/big"), digest)
}

// A proxy on the way carries no QUIC, so none is tried.
func TestProxied(t *testing.T) {
	files, digest := folder(t, "files", 1<<20)
	w := realWorld(t, TransportAuto, files)
	w.relay.Proxied = func(address string) bool { return address == w.relay.Relays[0] }
	defer w.listenQUIC()()
	w.begin()
	w.eventually("linked", func(s PeerStatus) bool {
		return lines(s) == "wss interactive linked; wss bulk linked; " && s.Choice == "wss: the proxy on the way carries no quic"
	})
	w.whole(w.get("files", "/big"), digest)
}
