package site

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"culvert.dev/pkg/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A service whose Serve has returned is not offered any more, also if no public relay has said anything of it.
func TestServeUnanswered(t *testing.T) {
	key := filepath.Join(t.TempDir(), "site.key")
	if _, err := auth.GenerateKey(key); err != nil {
		t.Fatal(err)
	}
	s := &Site{
		Relay: "relay.test:443", Name: "office", Key: key, Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("there is no network") },
	}
	t.Cleanup(func() { s.Close() })
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 { // a second one of the name is no other service
		if err := s.Serve(over, "web", "", http.NotFoundHandler()); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.given) != 0 {
		t.Errorf("%d services are offered", len(s.given))
	}
}
