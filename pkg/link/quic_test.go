package link

import (
	"context"
	"net"
	"testing"

	"github.com/quic-go/quic-go"
)

// listenQUIC lets links in over QUIC.
func (s *server) listenQUIC(t testing.TB, addr string, key *quic.StatelessResetKey) net.Addr {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := certs().server.Clone()
	cfg.NextProtos = []string{ALPN}
	tr := &quic.Transport{Conn: pc, StatelessResetKey: key}
	ln, err := tr.Listen(cfg, QUICConfig())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			loop := s.core.Loop(0)
			loop.Post(func() { AcceptQUIC(loop, conn, s.hello) })
		}
	}()
	t.Cleanup(func() { tr.Close(); pc.Close(); <-done })
	return pc.LocalAddr()
}
