package private

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

const (
	// answerTimeout is how long a camera may take to answer a request.
	answerTimeout = 15 * time.Second

	// silenceTimeout is how long a camera that plays may send nothing. Some go on for ever after a fault; players and
	// the hub of a fan_out service connect again when the stream ends.
	silenceTimeout = time.Minute

	// lookAtCameraInterval is how often those two are looked at, while there is something to wait for.
	lookAtCameraInterval = 5 * time.Second

	// queueMarks is how many times the stream's high mark a visitor's video may wait for the link: 6 MiB, and less when the
	// session's memory gets short. It is 12 s of 4 Mbit/s, in which a camera does not notice that the link was cut.
	queueMarks = 48

	// tellInterval is the least time between two lines in the log about video that was dropped: a visitor who reads
	// slowly would have one written for every few frames.
	tellInterval = time.Minute

	// fullInterval is how often a camera that had to be paused is looked at.
	fullInterval = 50 * time.Millisecond
)

// proxy is a visitor of a camera service and the connection to the camera, with the conversation of the two, which
// this relay takes part in: see ask and answer. It is owned by the loop.
//
// Both directions are messages and, between them, interleaved frames, which are passed on as they are. A message is
// looked at only while the other direction is between two frames, because the answer to it, or the request that follows
// from it, must not get into one that comes in pieces.
type proxy struct {
	peer     *peer        // immutable, as are the next three
	service  *service     //
	operator bool         // the visitor is one
	conn     *evloop.Conn // to the camera

	visitor      forward.End
	notify       func()       // that OnDrain is to come when the visitor has sent everything; with late only
	urls         rtsp.Mapping // Visitor is "" before the first request
	named        []string     // the camera's URLs that the visitor knows by numbers, see rtsp.Mapping.AppendSDP
	offered      []string     // what the camera has said that has a query in it, as the visitor knows it
	login        rtsp.Client
	logins       uint32      // challenges that login has taken
	challenged   rtsp.Client // login after the last of them
	redialled    bool        // see again
	up, down     rtsp.Demux
	reports      [4]uint64 // the channels of RTCP, a bit each
	upDropped    bool      // the visitor's last frame is not passed on
	upMid        bool      // of those that are, the last one has not come to its end
	downMid      bool      // nor has the camera's
	visitorWaits bool      // its messages do, see waits
	cameraWaits  bool
	visitorFull  bool // it is paused, because the camera does not take what it sends
	full         bool // the camera is
	gone         bool // the visitor has ended, or its stream was closed
	ended        bool // conn has
	playing      bool
	redirects    uint8

	cseq    uint32 // of the last request to the camera
	asked   []*cameraRequest
	session []byte // of the camera's last answer to SETUP
	heard   time.Time
	look    evloop.Timer
	refill  evloop.Timer // full

	late  *backlog            // nil: the service has no deadline
	shown *camera.Description // of late
	held  int                 // bytes of late that rtspScratch counts
}

// visitorSide and cameraSide are the handlers of a camera's two ends.
type (
	visitorSide struct{ *proxy }
	cameraSide  struct{ *proxy }
)

// acceptCamera takes a stream of a camera service.
func (p *peer) acceptCamera(s *tunnel.Stream, svc *service, h relay.Header) {
	if h.Scheme == "http" || h.Scheme == "https" {
		svc.pictures.Serve(s, p.loop, httpd.Peer{Addr: h.Visitor})
		return
	}
	svc.open.Add(1)
	newProxy(p, svc, s, h.Scheme == "operate").dial()
}

func newProxy(p *peer, svc *service, visitor forward.End, operator bool) *proxy {
	t := svc.Target
	c := &proxy{peer: p, service: svc, operator: operator, visitor: visitor, login: rtsp.Client{User: t.User, Password: t.Password}}
	c.urls.Camera = cameraURL(t)
	if stream, ok := visitor.(*tunnel.Stream); ok && svc.Deadline > 0 { // it can say when what it was given has been sent
		c.notify = stream.NotifySent
		c.late = &backlog{deadline: svc.Deadline}
	}
	return c
}

// dial connects to the camera. The visitor waits until it is there.
func (c *proxy) dial() {
	c.visitor.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	d := &dial{peer: c.peer, service: c.service, visitor: c.visitor, cancel: cancel, camera: c}
	c.visitor.SetHandler(d)
	if dial := c.peer.relay.dialCamera; dial != nil {
		c.peer.loop.DialFunc(ctx, dial, d.connected)
		return
	}
	c.peer.loop.Dial(ctx, c.service.network, c.service.address, d.connected)
}

// begin begins with a connection to the camera, on which it is asked again what it has not answered on the one before.
func (c *proxy) begin(conn *evloop.Conn) {
	c.conn = conn
	conn.SetHandler(cameraSide{c})
	c.visitor.SetHandler(visitorSide{c})
	asked := c.asked
	c.asked = nil
	for _, r := range asked {
		r.tries--
		c.send(r)
	}
	c.resumeVisitor()
}

// again dials a camera again that has ended the connection after it asked for credentials, as some do, and reports whether
// it does. It does so once, and not after there is a session, which may be one of the connection.
func (c *proxy) again() bool {
	shown := func(r *cameraRequest) bool { return r.shown }
	if c.redialled || c.session != nil || c.upMid || c.downMid || c.full || c.held > 0 || !slices.ContainsFunc(c.asked, shown) {
		return false
	}
	c.redialled = true
	// Those with credentials had been asked, and refused, before the others.
	slices.SortStableFunc(c.asked, func(a, b *cameraRequest) int {
		switch {
		case a.shown == b.shown:
			return 0
		case a.shown:
			return -1
		}
		return 1
	})
	c.login = c.challenged // nobody has seen them yet
	c.look.Stop()
	c.down, c.cameraWaits, c.visitorFull, c.visitorWaits = rtsp.Demux{}, false, false, false
	c.conn.SetHandler(left{})
	c.conn.Abort(errCameraLeft)
	c.dial()
	return true
}

// left is the handler of a connection that nobody needs any more.
type left struct{}

func (left) OnData(b []byte) int { return len(b) }
func (left) OnEOF()              {}
func (left) OnDrain()            {}
func (left) OnClose(error)       {}

// cameraURL is what a camera is asked for.
func cameraURL(t relay.Target) string {
	host := t.Host
	if port := map[string]uint16{"rtsp": 554, "rtsps": 322}[t.Scheme]; t.Port != port {
		host = net.JoinHostPort(host, strconv.Itoa(int(t.Port)))
	} else if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "[" + host + "]"
	}
	u := rtsp.URL{Scheme: t.Scheme, Authority: host, Path: t.Path, Query: t.Query}
	return u.String()
}

// OnData takes what the visitor sends: requests, and reports (RTCP). Frames of media are not passed on: they are sound for
// the camera's loudspeaker, and cameras are watched here.
func (v visitorSide) OnData(b []byte) int {
	c, m := v.proxy, &v.peer.rtsp.message
	at, from := 0, 0 // b[from:at] are frames
	for at < len(b) && !c.gone {
		k, n, err := c.up.Next(b[at:], m)
		if err != nil {
			c.conn.Write(b[from:at])
			c.refuse(err, m)
			return len(b)
		}
		if k == rtsp.None {
			break
		}
		if k == rtsp.Frame {
			if ch := c.up.Channel; c.up.First {
				c.upDropped = c.reports[ch/64]>>(ch%64)&1 == 0
			}
			if c.upDropped {
				c.conn.Write(b[from:at])
				at += n
				from = at
				continue
			}
			at += n
			if c.upMid = !c.up.Last; !c.upMid && c.cameraWaits {
				c.cameraWaits = false
				c.resumeCamera()
			}
			continue
		}
		c.conn.Write(b[from:at])
		from = at
		if k == rtsp.Request && c.waits() {
			c.visitorWaits = true
			c.visitor.Pause()
			return at
		}
		if k == rtsp.Request {
			c.ask(m)
		}
		at += n
		from = at
	}
	if c.gone {
		return len(b)
	}
	c.conn.Write(b[from:at])
	if c.conn.Pending() > c.conn.HighMark() && !c.visitorFull {
		c.visitorFull = true
		c.visitor.Pause()
	}
	return at
}

// waits reports whether a request of the visitor has to wait: for the end of a frame, for room, or for the camera to
// say how those before it are to be authenticated, so that none overtakes them.
func (c *proxy) waits() bool {
	if c.downMid || len(c.asked) >= maxAsked {
		return true
	}
	if len(c.asked) == 0 {
		return false
	}
	size := 0
	for _, r := range c.asked {
		size += r.size
	}
	return size > maxAskedBytes || c.login.User != "" && c.asked[len(c.asked)-1].logins != c.logins
}

// goOn has messages that wait looked at, if they need not wait any more.
func (c *proxy) goOn() {
	if c.visitorWaits && !c.waits() && !c.gone {
		c.visitorWaits = false
		c.resumeVisitor()
	}
}

func (c *proxy) resumeVisitor() {
	if !c.visitorWaits && !c.visitorFull && !c.gone {
		c.visitor.Resume()
	}
}

func (c *proxy) resumeCamera() {
	if !c.cameraWaits && !c.full && !c.ended {
		c.conn.Resume()
	}
}

// OnEOF passes on that the visitor has finished sending.
func (v visitorSide) OnEOF() { v.conn.CloseWrite() }

func (v visitorSide) OnDrain() { v.drained() }

// OnClose is the end of the visitor, who may have gone without a word: cameras have few sessions.
func (v visitorSide) OnClose(err error) {
	c := v.proxy
	c.gone = true
	c.service.streamEnded(err)
	c.stop()
	if c.ended {
		return
	}
	if c.playing && !c.upMid {
		c.tearDown()
	}
	c.conn.Close()
}

// OnData takes what the camera sends: answers, frames, and now and then a request.
func (s cameraSide) OnData(b []byte) int {
	c, m := s.proxy, &s.peer.rtsp.message
	if c.gone {
		return len(b)
	}
	c.heard = c.peer.now()
	at, from := 0, 0 // b[from:at] are frames
	for at < len(b) && !c.gone {
		k, n, err := c.down.Next(b[at:], m)
		if err != nil {
			c.media(b[from:at])
			c.lost(fmt.Errorf("what it says is no RTSP: %w", err), tunnel.CodeRefused)
			return len(b)
		}
		if k == rtsp.None {
			break
		}
		if k == rtsp.Frame {
			if c.late != nil && !c.late.frame(&c.down, b[at:at+n], c.visitor.Pending()+at-from, c.heard) {
				c.media(b[from:at])
				from = at + n
			}
			at += n
			c.downMid = !c.down.Last
			continue
		}
		c.media(b[from:at])
		from = at
		if k != rtsp.Blank && c.upMid {
			c.cameraWaits = true
			c.conn.Pause()
			return at
		}
		switch k {
		case rtsp.Response:
			c.answer(m)
		case rtsp.Request:
			c.asksBack(m)
		}
		at += n
		from = at
	}
	if c.gone {
		return len(b)
	}
	c.media(b[from:at])
	c.feed()
	c.goOn()
	if !c.full && c.queued() > c.room() {
		c.full = true
		c.conn.Pause()
		c.peer.loop.Arm(&c.refill, fullInterval, c.drained)
	}
	return at
}

// media passes frames on.
func (c *proxy) media(b []byte) { c.visitor.Write(b) }

// feed gives the stream what waits, as far as that is to be sent soon.
func (c *proxy) feed() {
	q := c.late
	if q == nil || c.gone {
		return
	}
	s := &c.peer.rtsp
	q.age(c.peer.now(), min(lateQueue, (lateQueues-s.queued+c.held)/4))
	for c.visitor.Pending() < q.ahead() {
		b := q.next()
		if b == nil {
			break
		}
		c.visitor.Write(b)
	}
	c.notify()
	s.queued += q.bytes - c.held
	c.held = q.bytes
	if q.empty() && q.dropped > 0 {
		c.service.dropped.Add(uint64(q.dropped))
		if now := c.peer.now().UnixNano(); now-c.service.droppedAt.Load() >= int64(tellInterval) {
			c.service.droppedAt.Store(now)
			c.peer.relay.log.Info("video was too late for a visitor and is dropped", "service", c.service.Name, "deadline", q.deadline, "frames", q.dropped)
		}
		q.dropped = 0
	}
}

// queued is how much waits for the visitor, and room how much may.
func (c *proxy) queued() int { return c.visitor.Pending() + c.held }
func (c *proxy) room() int {
	if c.late != nil {
		return 2 * lateQueue // a unit that has begun is longer than all
	}
	return c.visitor.HighMark() * queueMarks
}

// drained looks whether the visitor's queue has room again.
func (c *proxy) drained() {
	c.feed()
	if !c.full || c.gone {
		return
	}
	if c.queued() > c.room()*3/4 {
		c.peer.loop.Arm(&c.refill, fullInterval, c.drained)
		return
	}
	c.full = false
	c.heard = c.peer.now() // it was not the camera that was silent
	c.resumeCamera()
}

func (s cameraSide) OnDrain() {
	if s.visitorFull {
		s.visitorFull = false
		s.resumeVisitor()
	}
}

// OnEOF is a camera that has had enough: it was restarted, or has too many visitors.
func (s cameraSide) OnEOF() {
	c := s.proxy
	if c.gone || c.again() {
		return
	}
	if c.playing || len(c.asked) > 0 {
		c.peer.targetDown(c.service, errCameraLeft)
	}
	c.fail(rtsp.StatusBadGateway)
}

func (s cameraSide) OnClose(err error) {
	c := s.proxy
	if !c.gone && c.again() {
		return
	}
	c.ended = true
	if c.gone {
		return
	}
	if c.session != nil && !c.playing && len(c.asked) == 0 { // it has played, and nobody wants anything of it
		c.fail(rtsp.StatusBadGateway)
		return
	}
	if err == nil {
		err = errCameraLeft
	}
	c.lost(err, tunnel.CodeCancelled)
}

var (
	errCameraLeft    = errors.New("the camera has ended the connection")
	errCameraSilent  = errors.New("the camera does not answer")
	errCameraStopped = errors.New("the camera plays, and has sent nothing for a minute")
	errCameraAsks    = errors.New("the camera asks and asks, and does not read the answers")
	errCameraUDP     = errors.New("the camera does not send over TCP, which is what goes through the relays: look for RTP over RTSP in its settings")
	errCameraTooLong = errors.New("the camera's answer is too long with the visitor's URLs in it")
	errElsewhere     = errors.New("the camera sends visitors to another address: if they may go there, make it the target")
)

// fail ends the visitor's stream in good order, with an answer to what it has asked.
func (c *proxy) fail(status int) {
	for _, r := range c.asked {
		c.say(status, r.visitorCSeq)
	}
	if c.late != nil {
		for b := c.late.next(); b != nil; b = c.late.next() {
			c.visitor.Write(b)
		}
	}
	c.gone = true
	c.stop()
	c.visitor.Close()
	c.conn.Close()
}

// lost ends it at once: there is no camera any more.
func (c *proxy) lost(err error, code tunnel.Code) {
	c.peer.targetDown(c.service, err)
	c.gone = true
	c.stop()
	c.visitor.Abort(&tunnel.StreamError{Code: code})
	c.conn.Abort(err)
}

// refuse ends it because of what the visitor has sent.
func (c *proxy) refuse(err error, m *rtsp.Message) {
	status := rtsp.StatusBadRequest
	if e, ok := errors.AsType[*rtsp.Error](err); ok {
		status = e.Status
	}
	if !c.downMid {
		c.say(status, m.Get("CSeq"))
	}
	c.asked = nil
	c.fail(status)
}

func (c *proxy) stop() {
	c.look.Stop()
	c.refill.Stop()
	c.asked = nil
	c.peer.rtsp.queued -= c.held
	c.late, c.held = nil, 0
}

// await has the camera looked at while it owes something.
func (c *proxy) await() {
	if c.playing || len(c.asked) > 0 {
		c.peer.loop.Arm(&c.look, lookAtCameraInterval, c.looked)
	}
}

func (c *proxy) looked() {
	now := c.peer.now()
	switch {
	case c.moved():
		c.fail(rtsp.StatusBadGateway)
		return
	case c.full || c.cameraWaits: // it may say nothing
	case len(c.asked) > 0 && now.Sub(c.asked[0].at) >= answerTimeout:
		c.peer.targetDown(c.service, errCameraSilent)
		c.fail(rtsp.StatusGatewayTimeout)
		return
	case c.playing && now.Sub(c.heard) >= silenceTimeout:
		c.lost(errCameraStopped, tunnel.CodeTimeout)
		return
	}
	c.await()
}

// moved reports whether this is what the visitors of a fan_out service share, and the service has got another target by
// now. It has no end of its own, so that they would be shown the old camera for ever; the public relay asks again.
func (c *proxy) moved() bool {
	now := c.peer.relay.services.Load().byName[c.service.Name]
	return now != nil && now.Target != c.service.Target && !c.operator && now.Camera != nil && now.Camera.FanOut
}

// cameraTLS is what an rtsps camera is spoken to with. Cameras make their certificates themselves, without their address in
// it and by a clock that nobody has set: one that is in the service's ca as it is needs no more.
func cameraTLS(roots *x509.CertPool, host string) *tls.Config {
	if roots == nil {
		return &tls.Config{ServerName: host}
	}
	verify := func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		pinned := x509.VerifyOptions{Roots: roots, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if chains, err := leaf.Verify(pinned); err == nil {
			for _, chain := range chains {
				if len(chain) == 1 {
					return nil
				}
			}
		}
		o := x509.VerifyOptions{Roots: roots, DNSName: host, Intermediates: x509.NewCertPool()}
		for _, between := range state.PeerCertificates[1:] {
			o.Intermediates.AddCert(between)
		}
		if _, err := leaf.Verify(o); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		return nil
	}
	return &tls.Config{ServerName: host, InsecureSkipVerify: true, VerifyConnection: verify}
}
