package public

import (
	_ "embed"
	"html"
	"slices"
	"strings"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/tunnel"
)

// A browser gets of a camera a page that plays live.mp4; see watch.go. Requests for either are exchanges like others, so that
// policies, limits and the access log know them. What answers them is a back of our own.

//go:embed player/player.html
var playerPage string

//go:embed player/player.js
var playerScript []byte

//go:embed player/player.css
var playerStyle []byte

// own is the back of an exchange that the relay answers by itself. It takes no body.
type own struct{}

func (own) body([]byte)         {}
func (own) end([]http1.Field)   {}
func (own) flush()              {}
func (own) full() bool          { return false }
func (own) waiting() bool       { return false }
func (own) pause()              {}
func (own) resume()             {}
func (own) patient() bool       { return true }
func (own) reads() bool         { return false }
func (own) release()            {}
func (own) cancel()             {}
func (own) via() *tunnel.Stream { return nil }

// show begins with a request for what browsers see of s, which is a camera. It returns nil if
// there is no exchange any more.
func (l *loop) show(f front, s *service, req *http1.Request) *exchange {
	name := string(req.Path[len(s.prefix):])
	ex := l.newExchange(f, s, req)
	ex.back, ex.extra = own{}, nil
	switch name {
	case "", "/":
		return ex.give("text/html; charset=utf-8", s.page())
	case "/player.js":
		return ex.give("text/javascript; charset=utf-8", playerScript)
	case "/player.css":
		return ex.give("text/css; charset=utf-8", playerStyle)
	case "/live.mp4":
		return s.view(ex)
	}
	ex.fail(troublePage)
	return nil
}

// pageFields say what a page may do: nothing that is not from here.
var pageFields = []http1.Field{
	field("Cache-Control", "no-cache"),
	field("X-Content-Type-Options", "nosniff"),
	field("Referrer-Policy", "no-referrer"),
	field("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
		"img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"),
}

// give answers with b. It returns nil, which is what is left of ex.
func (ex *exchange) give(mime string, b []byte) *exchange {
	res := http1.Response{Minor: 1, Status: 200, ContentLength: int64(len(b)), Framing: http1.Length}
	res.Fields = append(slices.Clone(pageFields), field("Content-Type", mime))
	if ex.head {
		res.Framing = http1.NoBody
		ex.respond(&res, true)
		ex.pulled(0)
		return nil
	}
	ex.respond(&res, false)
	ex.payload(b)
	ex.complete(nil)
	ex.pulled(len(b))
	return nil
}

// page is the page of s. Its title is the last part of the path.
func (s *service) page() []byte {
	title := s.host
	if i := strings.LastIndexByte(s.prefix, '/'); i >= 0 {
		title = s.prefix[i+1:]
	}
	return []byte(strings.NewReplacer("{title}", html.EscapeString(title), "{prefix}", html.EscapeString(s.prefix)).Replace(playerPage))
}
