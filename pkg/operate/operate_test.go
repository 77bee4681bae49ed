package operate

import (
	"io"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		began := time.Now()
		conn := w.open(c, "echo")
		t.Logf("open took %v", time.Since(began))
		w.roundTrip(conn, "hello")
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
			t.Errorf("after our end: %q, %v", b, err)
		}
		conn.Close()

		// The end of one direction leaves the other.
		began = time.Now()
		conn = w.open(c, "hello")
		t.Logf("another one took %v", time.Since(began))
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || string(b) != "hello bye" {
			t.Errorf("got %q, %v", b, err)
		}
		conn.Close()

		// What is not there is named.
		_, err := c.Open(t.Context(), "office", "db")
		wantCode(t, err, relay.OperateNotFound, `"office" has no service "db": it has echo, hello`)
		_, err = c.Open(t.Context(), "garden", "db")
		wantCode(t, err, relay.OperateNotFound, `no site "garden"`)
		_, err = c.Open(t.Context(), "lab", "db")
		wantCode(t, err, relay.OperateAway, `"lab" is not connected`)
		_, err = w.operator("mallory").Open(t.Context(), "office", "echo")
		wantCode(t, err, CodeToken, "")
		_, err = w.operator("victor").Open(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateForbidden, "viewer")
		_, err = c.OpenPacket(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateNetwork, "leave --udp out")
		_, err = c.Dial(t.Context(), "office", "tcp", "127.0.0.1:1")
		wantCode(t, err, relay.OperateForbidden, "[socks]")
		if _, err := c.Check(t.Context(), "office", "echo", "tcp"); err != nil {
			t.Errorf("check: %v", err)
		}
		_, err = c.Check(t.Context(), "office", "echo", "udp")
		wantCode(t, err, relay.OperateNetwork, "")
	})
}
