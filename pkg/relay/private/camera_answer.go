package private

import (
	"bytes"
	"fmt"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// denyTime is how long a password that a camera has refused is not tried again: cameras shut out who guesses.
const denyTime = 30 * time.Second

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
	s.out = rtsp.AppendResponse(s.out[:0], status, "", fields, nil)
	c.conn.Write(s.out)
	if c.conn.Pending() > c.conn.HighMark() {
		c.lost(errCameraAsks, tunnel.CodeRefused)
	}
}

// answer passes an answer of the camera on, unless it is about what is between the camera and this relay.
func (c *proxy) answer(m *rtsp.Message) {
	r := c.answered(m)
	if r == nil || m.Status < 200 {
		return
	}
	if m.Status == rtsp.StatusUnauthorized || m.Status == 407 {
		c.unauthorized(r, m)
		return
	}
	if in := m.Status < 300 && !rtsp.Is(r.method, "OPTIONS"); in && r.shown || in && rtsp.Is(r.method, "DESCRIBE") { // OPTIONS is for everybody
		if r.shown && r.logins == c.logins {
			c.login.Accepted()
		}
		if c.service.denied.Swap(false) {
			c.peer.relay.log.Info("camera lets us in again", "service", c.service.Name)
		}
	}
	if m.Status >= 300 && m.Status < 400 && m.Status != 304 && c.redirected(r, m) {
		return
	}
	if rtsp.Is(r.method, "SETUP") && byUDP(m) {
		c.peer.targetDown(c.service, errCameraUDP)
		c.say(rtsp.StatusUnsupportedTransport, r.visitorCSeq)
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
	case r.tries < maxTries && (r.logins != c.logins || c.login.Challenge(m)):
		if r.logins == c.logins { // or else it was sent before one was known
			c.logins++
			c.challenged = c.login
		}
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
	origin := camera.Scheme + "://" + camera.Authority
	if u.Scheme == "" {
		u.Scheme, u.Authority = camera.Scheme, camera.Authority
	}
	to, ok := rtsp.Mapping{Visitor: origin, Camera: origin}.ToCamera(u.String())
	if err == nil && ok && string(r.url) == c.urls.Camera && c.redirects < 3 {
		c.redirects++
		c.urls.Camera = to
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
	case rtsp.Is(r.method, "DESCRIBE") && c.late != nil:
		c.shown, _ = camera.Parse(m.Body) // without it everything that comes is taken for pictures
	case rtsp.Is(r.method, "SETUP"):
		id, _ := rtsp.ParseSession(m.Get("Session"))
		c.session = []byte(id)
		if p, ok := channels(r, m.Fields); ok {
			c.reports[p[1]/64] |= 1 << (p[1] % 64)
			if c.late != nil {
				c.late.add(uint8(p[0]), trackOf(c.shown, string(r.url)))
			}
		}
	case rtsp.Is(r.method, "PLAY"):
		c.peer.targetBack(c.service)
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
	if m.Status >= 300 {
		body = nil // an error page is for those who know what and where the camera is
	}
	if rtsp.Is(r.method, "DESCRIBE") && (isSDP(m.Get("Content-Type")) || bytes.HasPrefix(body, []byte("v="))) {
		c.urls.Base = c.baseOf(m)
		s.body, c.named = c.urls.AppendSDP(s.body[:0], body)
		body = s.body
		c.offered = queriesIn(body)
	}
	fields := append(s.fields[:0], rtsp.Field{Name: []byte("CSeq"), Value: r.visitorCSeq}) // which some cameras forget
	for _, f := range m.Fields {
		switch {
		case rtsp.Is(f.Name, "CSeq"), keptFromVisitor(f.Name):
			continue
		case rtsp.Is(f.Name, "Content-Base"), rtsp.Is(f.Name, "Content-Location"), rtsp.Is(f.Name, "Location"):
			url, ok := c.urls.ToVisitor(string(f.Value))
			if !ok {
				continue
			}
			f.Value = []byte(url)
		case rtsp.Is(f.Name, "RTP-Info"):
			f.Value = c.urls.AppendRTPInfo(nil, f.Value, c.named)
		case rtsp.Is(f.Name, "Transport"):
			f.Value = withoutAddresses(f.Value)
			if p, ok := channels(r, m.Fields); ok && !bytes.Contains(bytes.ToLower(f.Value), []byte("interleaved=")) {
				f.Value = fmt.Appendf(f.Value, ";interleaved=%d-%d", p[0], p[1])
			}
		}
		fields = append(fields, f)
	}
	s.fields = fields
	s.out = rtsp.AppendResponse(s.out[:0], m.Status, "", fields, body)
	if len(s.out) > rtsp.MaxMessage { // it could be 100 times what came
		s.out, s.body = nil, nil
		c.peer.targetDown(c.service, errCameraTooLong)
		c.say(rtsp.StatusBadGateway, r.visitorCSeq)
		return
	}
	c.tell(s.out)
}

// byUDP reports whether an answer to SETUP says that the camera cannot send over TCP, or will not.
func byUDP(m *rtsp.Message) bool {
	if m.Status == rtsp.StatusUnsupportedTransport {
		return true
	}
	t, err := rtsp.ParseTransport(m.Get("Transport"))
	return m.Status < 300 && err == nil && !t[0].TCP && !t[0].HasInterleaved
}

// channels returns those of an answer to SETUP, or those that were asked for: some cameras take them and do not say so.
func channels(r *cameraRequest, answer []rtsp.Field) (p rtsp.Pair, ok bool) {
	for _, fields := range [...][]rtsp.Field{answer, r.fields} {
		t, err := rtsp.ParseTransport((&rtsp.Message{Fields: fields}).Get("Transport"))
		if err == nil && t[0].HasInterleaved {
			return t[0].Interleaved, true
		}
	}
	return p, false
}

// baseOf returns what the tracks of a description are relative to, if that is nowhere below the visitor's URL.
func (c *proxy) baseOf(m *rtsp.Message) string {
	for _, name := range [...]string{"Content-Base", "Content-Location"} { // rfc2326#section-C.1.1
		v := m.Get(name)
		if len(v) == 0 {
			continue
		}
		if _, ok := c.urls.ToVisitor(string(v)); ok || !bytes.Contains(v, []byte("://")) {
			return ""
		}
		return string(v)
	}
	return ""
}

// queriesIn returns the control attributes of a description that have what could be taken for a part of a query.
func queriesIn(sdp []byte) (found []string) {
	for line := range bytes.Lines(sdp) {
		v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("a=control:"))
		if ok && bytes.ContainsAny(v, queryBytes) && len(found) < rtsp.MaxMedia {
			found = append(found, string(v))
		}
	}
	return found
}

// keptFromVisitor reports whether a field of an answer is not for the visitor.
func keptFromVisitor(name []byte) bool {
	for _, n := range [...]string{
		"Content-Length", "Server", "Via", "WWW-Authenticate", "Proxy-Authenticate", "Authentication-Info", "Set-Cookie",
	} {
		if rtsp.Is(name, n) {
			return true
		}
	}
	// What a maker has added is about the device, and no player needs it.
	return len(name) > 2 && rtsp.Is(name[:2], "X-")
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
