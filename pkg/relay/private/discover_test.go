package private

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

func TestDiscover(t *testing.T) {
	s := newSite(t)
	ask := func(request string) relay.DiscoverReply {
		t.Helper()
		v := s.open(relay.Header{Kind: relay.KindDiscover})
		v.write(request)
		v.closeWrite()
		b, err := io.ReadAll(v.r)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := relay.DecodeDiscoverReply(b)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if err := <-v.closed; err != nil {
			t.Errorf("the stream ends with %v", err)
		}
		return reply
	}
	// A relay that is not told to does not look.
	if r := ask("{}"); r.Error != errNoDiscovery.Error() {
		t.Errorf("%+v", r)
	}
	use := func(f func(context.Context, relay.DiscoverRequest) ([]byte, error)) {
		s.do(func() { s.peer.relay.Discover = f })
	}
	var got relay.DiscoverRequest
	use(func(_ context.Context, req relay.DiscoverRequest) ([]byte, error) {
		got = req
		return []byte(`[{"id":"x"}]`), nil
	})
	if r := ask(`{"user":"admin","password":"secret"}`); r.Error != "" || string(r.Devices) != `[{"id":"x"}]` || got.User != "admin" || got.Password != "secret" {
		t.Errorf("%+v of %+v", r, got)
	}
	for request, want := range map[string]string{
		"rubbish":          "discover: ",
		`{"password":"x"}`: "a password without a user",
		`{"user":"` + strings.Repeat("x", 200) + `"}`: "more than 128 bytes",
	} {
		if r := ask(request); !strings.Contains(r.Error, want) {
			t.Errorf("%.40s: %+v", request, r)
		}
	}
	use(func(context.Context, relay.DiscoverRequest) ([]byte, error) { return nil, errors.New("no net\nwörk") })
	if r := ask("{}"); r.Error != "no net?w?rk" {
		t.Errorf("%+v", r)
	}
	use(func(context.Context, relay.DiscoverRequest) ([]byte, error) {
		return []byte(`["` + strings.Repeat("x", relay.MaxDiscover) + `"]`), nil
	})
	if r := ask("{}"); !strings.Contains(r.Error, "too many to tell") {
		t.Errorf("%+v", r)
	}

	// One search at a time, which ends with its stream.
	began, ended := make(chan struct{}), make(chan struct{})
	use(func(ctx context.Context, _ relay.DiscoverRequest) ([]byte, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	v := s.open(relay.Header{Kind: relay.KindDiscover})
	v.write("{}")
	v.closeWrite()
	<-began
	if r := ask("{}"); r.Error != errDiscovering.Error() {
		t.Errorf("%+v", r)
	}
	s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
	<-ended

	// A request has an end.
	v = s.open(relay.Header{Kind: relay.KindDiscover})
	v.write(strings.Repeat(" ", relay.MaxMessage+1))
	v.wantCode(tunnel.CodeForbidden)
}
