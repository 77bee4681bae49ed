package private

import (
	"bytes"
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

	// denyTime is how long a password that a camera has refused is not tried again: cameras shut out who guesses.
	denyTime = 30 * time.Second
)

// rtspScratch is what the cameras of a session share: nothing of it is needed beyond a call.
type rtspScratch struct {
	message rtsp.Message
	fields  []rtsp.Field
	out     []byte
	body    []byte
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
	if url == c.urls.Visitor+"/" && (rtsp.Is(m.Method, "OPTIONS") || rtsp.Is(m.Method, "DESCRIBE")) {
		return c.urls.Camera, true
	}
	return c.urls.ToCamera(url)
}

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
		if !t.TCP || t.Multicast {
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
func (c *proxy) say(status int, cseq []byte) {
	if c.downMid {
		return // only at the end of everything
	}
	s := &c.peer.rtsp
	fields := s.fields[:0]
	if len(cseq) > 0 {
		fields = append(fields, rtsp.Field{Name: []byte("CSeq"), Value: cseq})
	}
	s.fields = fields
	s.out = rtsp.AppendResponse(s.out[:0], status, fields, nil)
	c.tell(s.out)
}

// tell writes a message to the visitor.
func (c *proxy) tell(b []byte) { c.visitor.Write(b) }

// asksBack answers a request of the camera. None is for the visitor: they are signs of life, mostly, and what else
// RFC 2326 has (ANNOUNCE, REDIRECT) would tell where the camera is.
func (c *proxy) asksBack(m *rtsp.Message) {
	status := rtsp.StatusNotImplemented
	for _, known := range [...]string{"OPTIONS", "GET_PARAMETER", "SET_PARAMETER"} {
		if rtsp.Is(m.Method, known) {
			status = rtsp.StatusOK
		}
	}
	s := &c.peer.rtsp
	fields := s.fields[:0]
	for _, name := range [...]string{"CSeq", "Session"} {
		if v := m.Get(name); v != nil {
			fields = append(fields, rtsp.Field{Name: []byte(name), Value: v})
		}
	}
	s.fields = fields
	s.out = rtsp.AppendResponse(s.out[:0], status, fields, nil)
	c.conn.Write(s.out)
}

// answer passes an answer of the camera on, unless it is about what is between the camera and this relay.
func (c *proxy) answer(m *rtsp.Message) {
	r := c.answered(m)
	if r == nil || m.Status < 200 {
		return
	}
	switch {
	case m.Status == rtsp.StatusUnauthorized, m.Status == 407:
		c.unauthorized(r, m)
		return
	case m.Status < 300 && (r.shown || rtsp.Is(r.method, "DESCRIBE")) && c.service.denied.Swap(false):
		c.peer.relay.log.Info("camera lets us in again", "service", c.service.Name)
	}
	if m.Status >= 300 && m.Status < 400 && m.Status != 304 && c.redirected(r, m) {
		return
	}
	c.note(r, m)
	c.pass(r, m)
}

// answered takes the request off the list that m answers. It returns nil if there is none.
func (c *proxy) answered(m *rtsp.Message) *cameraRequest {
	n, ok := m.CSeq()
	for i, r := range c.asked {
		if r.cseq != n && ok || m.Status < 200 {
			continue
		}
		c.asked = append(c.asked[:i], c.asked[i+1:]...)
		if len(c.asked) == 0 {
			c.asked = nil
		}
		return r
	}
	return nil
}

// unauthorized is told that the camera wants credentials: the target's, once or with a new nonce.
func (c *proxy) unauthorized(r *cameraRequest, m *rtsp.Message) {
	svc := c.service
	now := c.peer.now()
	switch {
	case c.login.User == "":
		c.deny("camera wants a user name and password: put them into the target")
	case now.UnixNano()-svc.deniedAt.Load() < int64(denyTime):
		// It is too early to try again, and the log has it.
	case r.tries < maxTries && c.login.Challenge(m):
		c.logins++
		c.send(r)
		return
	case !r.shown:
		c.deny("camera wants an authentication that is neither Basic nor Digest")
	default:
		svc.deniedAt.Store(now.UnixNano())
		c.deny("camera refuses the password")
	}
	c.say(rtsp.StatusUnavailable, r.visitorCSeq)
}

// deny logs, once in a row, why a camera shows nothing.
func (c *proxy) deny(why string) {
	c.service.failed.Add(1)
	if !c.service.denied.Swap(true) {
		c.peer.relay.log.Warn(why, "service", c.service.Name, "target", c.service.Target)
	}
}

// redirected follows the camera to another URL of its own. What is elsewhere no visitor may know of, nor is it what the
// configuration names. It reports whether the answer is dealt with.
func (c *proxy) redirected(r *cameraRequest, m *rtsp.Message) bool {
	location := m.Get("Location")
	if location == nil {
		return false
	}
	if _, ok := c.urls.ToVisitor(string(location)); ok {
		return false
	}
	u, err := rtsp.ParseURL(location)
	camera, _ := rtsp.ParseURL([]byte(c.urls.Camera))
	if err == nil && (u.Scheme == "" || u.Scheme == camera.Scheme && u.Authority == camera.Authority) && string(r.url) == c.urls.Camera && c.redirects < 3 {
		c.redirects++
		u.Scheme, u.Authority = camera.Scheme, camera.Authority
		c.urls.Camera = u.String()
		r.url, r.tries = []byte(c.urls.Camera), 0
		c.send(r)
		return true
	}
	c.peer.targetDown(c.service, errElsewhere)
	c.say(rtsp.StatusBadGateway, r.visitorCSeq)
	return true
}

// note remembers what an answer changes.
func (c *proxy) note(r *cameraRequest, m *rtsp.Message) {
	if m.Status >= 300 {
		return
	}
	switch {
	case rtsp.Is(r.method, "SETUP"):
		id, _ := rtsp.ParseSession(m.Get("Session"))
		c.session = []byte(id)
	case rtsp.Is(r.method, "PLAY"), rtsp.Is(r.method, "RECORD"):
		if !c.playing {
			c.playing = true
			c.await()
		}
	case rtsp.Is(r.method, "PAUSE"), rtsp.Is(r.method, "TEARDOWN"):
		c.playing = false
	}
}

// pass writes an answer of the camera to the visitor, with the visitor's URLs.
func (c *proxy) pass(r *cameraRequest, m *rtsp.Message) {
	s := &c.peer.rtsp
	body := m.Body
	if len(body) > 0 && rtsp.Is(r.method, "DESCRIBE") && isSDP(m.Get("Content-Type")) {
		s.body, c.named = c.urls.AppendSDP(s.body[:0], body)
		body = s.body
	}
	fields := s.fields[:0]
	for _, f := range m.Fields {
		switch {
		case keptFromVisitor(f.Name):
			continue
		case rtsp.Is(f.Name, "CSeq"):
			f.Value = r.visitorCSeq
		case rtsp.Is(f.Name, "Content-Base"), rtsp.Is(f.Name, "Content-Location"), rtsp.Is(f.Name, "Location"):
			url, ok := c.urls.ToVisitor(string(f.Value))
			if !ok {
				continue
			}
			f.Value = []byte(url)
		case rtsp.Is(f.Name, "RTP-Info"):
			f.Value = c.rtpInfo(f.Value)
		case rtsp.Is(f.Name, "Transport"):
			f.Value = withoutAddresses(f.Value)
		}
		fields = append(fields, f)
	}
	s.fields = fields
	s.out = rtsp.AppendResponse(s.out[:0], m.Status, fields, body)
	c.tell(s.out)
}

// keptFromVisitor reports whether a field of an answer is not for the visitor.
func keptFromVisitor(name []byte) bool {
	for _, n := range [...]string{
		"Content-Length", "Server", "Via", "WWW-Authenticate", "Proxy-Authenticate", "Authentication-Info", "X-Server-IP-Address", "Set-Cookie",
	} {
		if rtsp.Is(name, n) {
			return true
		}
	}
	return false
}

// withoutAddresses returns a Transport without the addresses in it.
func withoutAddresses(v []byte) []byte {
	var kept []byte
	for i, p := range bytes.Split(v, []byte(";")) {
		name, _, _ := bytes.Cut(bytes.TrimSpace(p), []byte("="))
		if rtsp.Is(name, "source") || rtsp.Is(name, "destination") {
			continue
		}
		if i > 0 {
			kept = append(kept, ';')
		}
		kept = append(kept, p...)
	}
	return kept
}

func isSDP(contentType []byte) bool {
	kind, _, _ := bytes.Cut(contentType, []byte(";"))
	return rtsp.Is(bytes.TrimSpace(kind), "application/sdp")
}

// rtpInfo returns an RTP-Info with the visitor's URLs (rfc2326#section-12.33).
func (c *proxy) rtpInfo(v []byte) []byte {
	streams := bytes.Split(v, []byte(","))
	for i, s := range streams {
		parts := bytes.Split(s, []byte(";"))
		for j, p := range parts {
			name, url, _ := bytes.Cut(bytes.TrimSpace(p), []byte("="))
			if !rtsp.Is(name, "url") {
				continue
			}
			mapped, ok := c.urls.ToVisitor(string(url))
			if !ok && bytes.Contains(url, []byte("://")) {
				mapped = c.urls.Visitor
			} else if !ok {
				continue
			}
			parts[j] = []byte("url=" + mapped)
		}
		streams[i] = bytes.Join(parts, []byte(";"))
	}
	return bytes.Join(streams, []byte(","))
}
