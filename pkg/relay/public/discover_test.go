package public

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

func TestDiscover(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ask := func(ctx context.Context, site string) string {
		b, err := r.Discover(ctx, site, relay.DiscoverRequest{User: "admin", Password: "secret"})
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	ctx := t.Context()
	if _, err := r.Discover(ctx, "nowhere", relay.DiscoverRequest{}); !errors.Is(err, ErrUnknownSite) {
		t.Error(err)
	}
	if got := ask(ctx, "office"); got != `site "office" has no private relay connected` {
		t.Error(got)
	}
	site := r.connect("office", nil)
	answer := func(st *tunnel.Stream, b string) {
		st.Write([]byte(b))
		st.CloseWrite()
	}
	var respond func(st *tunnel.Stream)
	var asked string
	site.handle(func(st *tunnel.Stream, h relay.Header) bool {
		if h.Kind != relay.KindDiscover {
			return false
		}
		var request []byte
		st.SetHandler(&funcHandler{
			data: func(b []byte) int { request = append(request, b...); return len(b) },
			eof:  func() { asked = string(request); respond(st) },
		})
		return true
	})
	for _, test := range []struct{ reply, want string }{
		{`{"devices":[{"id":"x"}]}`, `[{"id":"x"}]`},
		{`{"error":"say discovery = true"}`, `site "office": say discovery = true`},
		{`{"error":"\u001b[2J"}`, `site "office": discovered: malformed error`},
		{`{"devices":{}}`, `site "office": discovered: no list of devices`},
		{`rubbish`, `site "office": discovered: invalid character 'r' looking for beginning of value`},
		{strings.Repeat(" ", relay.MaxDiscover+1), fmt.Sprintf(`site "office": its answer has more than %d bytes`, relay.MaxDiscover)},
	} {
		respond = func(st *tunnel.Stream) { answer(st, test.reply) }
		if got := ask(ctx, "office"); got != test.want {
			t.Errorf("%.40s: %s", test.reply, got)
		}
	}
	if asked != `{"user":"admin","password":"secret"}` {
		t.Errorf("the private relay is asked %s", asked)
	}
	respond = func(st *tunnel.Stream) { st.Reset(tunnel.CodeInternal) }
	if got := ask(ctx, "office"); !strings.Contains(got, "the search was cut") {
		t.Error(got)
	}
	// Nobody waits for ever, nor does the private relay search for nobody.
	ended, end := context.WithCancel(ctx)
	reset := make(chan error, 1)
	respond = func(st *tunnel.Stream) {
		st.SetHandler(&funcHandler{close: func(err error) { reset <- err }})
		end()
	}
	if got := ask(ended, "office"); got != context.Canceled.Error() {
		t.Error(got)
	}
	if e, _ := errors.AsType[*tunnel.StreamError](<-reset); e == nil || e.Code != tunnel.CodeCancelled {
		t.Errorf("the stream ends with %v", e)
	}
}
