package private

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

const (
	// maxAsked and maxAskedBytes bound the requests of a visitor that the camera has not answered.
	maxAsked, maxAskedBytes = 16, 64 << 10

	// maxTries is how often a request is sent at the most: without credentials, with them, and with a nonce that
	// is not stale.
	maxTries = 3
)

// rtspScratch is what the cameras of a session share: nothing of it is needed beyond a call.
type rtspScratch struct {
	message rtsp.Message
	fields  []rtsp.Field
	out     []byte
	body    []byte
	queued  int // bytes in the backlogs
}

// cameraRequest is one that the camera has not answered.
type cameraRequest struct {
	method, url, body []byte // as the camera gets them
	fields            []rtsp.Field
	visitorCSeq       []byte // nil: of ours, whose answer is nobody's
	cseq              uint32
	at                time.Time
	size              int
	tries             uint8
	logins            uint32 // camera.logins when it was sent
	shown             bool   // it was sent with credentials
}

// ask passes a request of the visitor on: with the camera's URL and without what is not the camera's business.
func (c *proxy) ask(m *rtsp.Message) {
	if status := methodStatus(m); status != 0 {
		c.say(status, m.Get("CSeq"))
		return
	}
	url, ok := c.route(m)
	if !ok {
		c.say(rtsp.StatusNotFound, m.Get("CSeq"))
		return
	}
	fields := c.peer.rtsp.fields[:0]
	for _, f := range m.Fields {
		switch {
		case keptFromCamera(f.Name):
			continue
		case rtsp.Is(f.Name, "Require") && bytes.Contains(bytes.ToLower(f.Value), []byte("backchannel")):
			// Nobody speaks into the room of a camera that is there to be watched. Players go on without.
			c.say(rtsp.StatusOptionNotSupported, m.Get("CSeq"), rtsp.Field{Name: []byte("Unsupported"), Value: f.Value})
			return
		case rtsp.Is(f.Name, "Transport"):
			var status int
			if f.Value, status = transportFor(f.Value); status != 0 {
				c.say(status, m.Get("CSeq"))
				return
			}
		}
		fields = append(fields, f)
	}
	c.peer.rtsp.fields = fields
	copied := (&rtsp.Message{Method: m.Method, URL: []byte(url), Fields: fields, Body: m.Body, Reason: m.Get("CSeq")}).Clone()
	r := &cameraRequest{method: copied.Method, url: copied.URL, fields: copied.Fields, body: copied.Body, visitorCSeq: copied.Reason}
	if r.visitorCSeq == nil {
		r.visitorCSeq = []byte{}
	}
	for _, f := range r.fields {
		r.size += len(f.Name) + len(f.Value)
	}
	r.size += len(r.url) + len(r.body)
	c.send(r)
}

// methodStatus returns the status that refuses a request which could change the camera, or 0. The public relay refuses
// them, too; the site does not depend on that.
func methodStatus(m *rtsp.Message) int {
	switch string(m.Method) {
	case "OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PAUSE", "TEARDOWN", "GET_PARAMETER":
		return 0
	case "SET_PARAMETER":
		if len(m.Body) == 0 { // it keeps the session alive
			return 0
		}
		return rtsp.StatusMethodNotAllowed
	case "ANNOUNCE", "RECORD":
		return rtsp.StatusMethodNotAllowed
	}
	return rtsp.StatusNotImplemented
}

// send sends a request, or sends it again.
func (c *proxy) send(r *cameraRequest) {
	s := &c.peer.rtsp
	c.cseq++
	r.cseq, r.at, r.logins = c.cseq, c.peer.now(), c.logins
	r.tries++
	fields := append(s.fields[:0], rtsp.Field{Name: []byte("CSeq"), Value: strconv.AppendUint(nil, uint64(r.cseq), 10)})
	fields = append(fields, r.fields...)
	r.shown = false
	if c.logins > 0 {
		if f, ok := c.login.Authorization(r.method, r.url, r.body); ok {
			fields = append(fields, f)
			r.shown = true
		}
	}
	s.fields = fields
	s.out = rtsp.AppendRequest(s.out[:0], r.method, r.url, fields, r.body)
	c.conn.Write(s.out)
	c.asked = append(c.asked, r)
	if len(c.asked) == 1 {
		c.await()
	}
}

// tearDown ends the camera's session on behalf of a visitor who has left without doing so.
func (c *proxy) tearDown() {
	c.send(&cameraRequest{
		method: []byte("TEARDOWN"), url: []byte(c.urls.Camera),
		fields: []rtsp.Field{{Name: []byte("Session"), Value: c.session}},
	})
	c.asked = nil
	c.look.Stop()
}

// route returns what the camera calls what the visitor asks for. It is never outside of the service's own.
func (c *proxy) route(m *rtsp.Message) (string, bool) {
	if string(m.URL) == "*" {
		return c.urls.Camera, true
	}
	u, err := rtsp.ParseURL(m.URL)
	if err != nil || u.Scheme == "" {
		return "", false
	}
	base := strings.TrimSuffix(c.service.Publish.Path, "/")
	if c.operator && !relay.MatchPath(c.service.Publish.Path, u.Path) {
		base = ""
	}
	// The authority is the visitor's own affair, who may have reached the public relay by several.
	c.urls.Visitor = u.Scheme + "://" + u.Authority + base
	url := u.String()
	if n, ok := strings.CutPrefix(url, c.urls.Visitor+"/~"); ok {
		i, err := strconv.Atoi(n)
		if err != nil || i < 0 || i >= len(c.named) {
			return "", false
		}
		return c.named[i], true
	}
	rest, ok := strings.CutPrefix(url, c.urls.Visitor)
	switch {
	case !ok:
		return "", false
	case strings.HasPrefix(rest, "?") && !slices.Contains(c.offered, url),
		rest == "/" && (rtsp.Is(m.Method, "OPTIONS") || rtsp.Is(m.Method, "DESCRIBE")):
		return c.urls.Camera, true
	case strings.ContainsAny(rest, queryBytes) && !slices.Contains(c.offered, url) && !slices.Contains(c.offered, rest[1:]):
		return "", false
	}
	return c.urls.ToCamera(url)
}

// queryBytes begin a query or part its parameters. Cameras choose the channel by them, so what has one is passed on if the
// camera has said it.
const queryBytes = "?&;"

// keptFromCamera reports whether a field of a request is not for the camera: what this relay writes itself, what is
// between the visitor and the relays, and what tells where the visitor comes from.
func keptFromCamera(name []byte) bool {
	for _, n := range [...]string{
		"CSeq", "Content-Length", "Authorization", "Proxy-Authorization", "Proxy-Require", "Via", "Forwarded", "X-Real-IP", "Host", "Referer", "Cookie", "X-SessionCookie",
	} {
		if rtsp.Is(name, n) {
			return true
		}
	}
	const forwarded = "X-Forwarded-"
	return len(name) > len(forwarded) && rtsp.Is(name[:len(forwarded)], forwarded)
}

// transportFor returns the alternative of a Transport that goes through the relays, which is TCP, or a status.
func transportFor(v []byte) ([]byte, int) {
	all, err := rtsp.ParseTransport(v)
	if err != nil {
		return nil, rtsp.StatusBadRequest
	}
	for _, t := range all {
		if !t.TCP || t.Multicast || t.Mode == "RECORD" {
			continue
		}
		if len(all) == 1 && t.Destination == "" && t.Source == "" {
			return v, 0
		}
		t.Destination, t.Source = "", ""
		return []byte(t.String()), 0
	}
	return nil, rtsp.StatusUnsupportedTransport
}

// say answers a request of the visitor that the camera does not hear of, or not any more.
func (c *proxy) say(status int, cseq []byte, more ...rtsp.Field) {
	if c.downMid {
		return // only at the end of everything
	}
	s := &c.peer.rtsp
	fields := s.fields[:0]
	if len(cseq) > 0 {
		fields = append(fields, rtsp.Field{Name: []byte("CSeq"), Value: cseq})
	}
	fields = append(fields, more...)
	s.fields = fields
	s.out = rtsp.AppendResponse(s.out[:0], status, "", fields, nil)
	c.tell(s.out)
}

// tell writes a message to the visitor.
func (c *proxy) tell(b []byte) {
	if c.late == nil || c.late.message(b) {
		c.visitor.Write(b)
	}
}
