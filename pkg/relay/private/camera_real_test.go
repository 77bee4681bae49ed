package private

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtp"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// realCamera is a camera made of gortsplib's server, which shows one stream of H.264.
type realCamera struct {
	server         *gortsplib.Server
	user, password string
	stream         *gortsplib.ServerStream
	media          *description.Media
	addr           string

	mu    sync.Mutex
	plays int
}

func newRealCamera(t *testing.T, user, password string, methods []auth.VerifyMethod, cfg *tls.Config) *realCamera {
	t.Helper()
	c := &realCamera{user: user, password: password}
	c.server = &gortsplib.Server{
		Handler: c, RTSPAddress: "127.0.0.1:0", AuthMethods: methods, TLSConfig: cfg,
		Listen: func(network, address string) (net.Listener, error) {
			ln, err := net.Listen(network, address)
			if err == nil {
				c.addr = ln.Addr().String()
			}
			return ln, err
		},
	}
	if err := c.server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.server.Close(); c.stream.Close() })
	c.media = &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{&format.H264{PayloadTyp: 96, PacketizationMode: 1}}}
	c.stream = &gortsplib.ServerStream{Server: c.server, Desc: &description.Session{Medias: []*description.Media{c.media}}}
	if err := c.stream.Initialize(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *realCamera) refused(conn *gortsplib.ServerConn, r *base.Request) *base.Response {
	if c.user == "" || conn.VerifyCredentials(r, c.user, c.password) {
		return nil
	}
	return &base.Response{StatusCode: base.StatusUnauthorized, Header: base.Header{"WWW-Authenticate": nil}}
}

func (c *realCamera) OnDescribe(x *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if r := c.refused(x.Conn, x.Request); r != nil {
		return r, nil, liberrors.ErrServerAuth{}
	}
	return &base.Response{StatusCode: base.StatusOK}, c.stream, nil
}

func (c *realCamera) OnSetup(x *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if r := c.refused(x.Conn, x.Request); r != nil {
		return r, nil, liberrors.ErrServerAuth{}
	}
	return &base.Response{StatusCode: base.StatusOK}, c.stream, nil
}

func (c *realCamera) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plays++
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// front is an address where players reach a service through the tunnel.
func (s *site) front(service, scheme string) string {
	s.t.Helper()
	ln, err := s.loop.Listen("tcp", "127.0.0.1:0", func(c *evloop.Conn) {
		header, err := relay.Header{Kind: relay.KindConnect, Service: service, Scheme: scheme, Visitor: c.RemoteAddr()}.Append(nil)
		if err != nil {
			s.t.Error(err)
		}
		st, err := s.far.Open(header)
		if err != nil {
			c.Abort(err)
			return
		}
		forward.Splice(c, st, nil)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

// play plays url until n packets have come, and returns them.
func play(t *testing.T, url string, n int) (got []*rtp.Packet, err error) {
	t.Helper()
	u, err := base.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	tcp := gortsplib.ProtocolTCP
	c := gortsplib.Client{Scheme: u.Scheme, Host: u.Host, Protocol: &tcp, ReadTimeout: 10 * time.Second}
	if err := c.Start(); err != nil {
		return nil, err
	}
	defer c.Close()
	d, _, err := c.Describe(u)
	if err != nil {
		return nil, err
	}
	if err := c.SetupAll(d.BaseURL, d.Medias); err != nil {
		return nil, err
	}
	packets := make(chan *rtp.Packet, 1000)
	c.OnPacketRTPAny(func(_ *description.Media, _ format.Format, p *rtp.Packet) {
		select {
		case packets <- p:
		default:
		}
	})
	if _, err := c.Play(nil); err != nil {
		return nil, err
	}
	for len(got) < n {
		select {
		case p := <-packets:
			got = append(got, p)
		case <-time.After(10 * time.Second):
			t.Fatalf("%d packets of %d", len(got), n)
		}
	}
	return got, nil
}

// shoot sends packets until stop is called.
func (c *realCamera) shoot(t *testing.T) (stop func()) {
	ended, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := uint16(0); ; n++ {
			payload := append([]byte{0x65, 0x80}, bytes.Repeat([]byte{byte(n)}, 1000)...)
			c.stream.WritePacketRTP(c.media, &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, Marker: true, SequenceNumber: n, Timestamp: uint32(n) * 3000, SSRC: 7}, Payload: payload})
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(end); <-ended }
}

// A real player plays a real camera, with every way to authenticate, and by the operator's forward, too.
func TestRealCamera(t *testing.T) {
	for _, test := range []struct {
		name, user, password, given, scheme, path string
		methods                                   []auth.VerifyMethod
		log                                       string // of what goes wrong
	}{
		{name: "open", scheme: "rtsp", path: "/gate"},
		{name: "basic", user: "admin", password: "p@ss", given: "admin:p%40ss@", scheme: "rtsp", path: "/gate", methods: []auth.VerifyMethod{auth.VerifyMethodBasic}},
		{name: "md5", user: "admin", password: "p@ss", given: "admin:p%40ss@", scheme: "rtsp", path: "/gate", methods: []auth.VerifyMethod{auth.VerifyMethodDigestMD5}},
		{name: "sha-256", user: "admin", password: "p@ss", given: "admin:p%40ss@", scheme: "rtsp", path: "/gate", methods: []auth.VerifyMethod{auth.VerifyMethodDigestSHA256}},
		{name: "all", user: "admin", password: "p@ss", given: "admin:p%40ss@", scheme: "rtsp", path: "/gate", methods: []auth.VerifyMethod{auth.VerifyMethodBasic, auth.VerifyMethodDigestMD5, auth.VerifyMethodDigestSHA256}},
		{name: "none given", user: "admin", password: "p@ss", scheme: "rtsp", path: "/gate", log: "wants a user name and password"},
		{name: "wrong", user: "admin", password: "p@ss", given: "admin:pass@", scheme: "rtsp", path: "/gate", log: "refuses the password"},
		{name: "operator", user: "admin", password: "p@ss", given: "admin:p%40ss@", scheme: "operate", path: ""},
		{name: "operator with path", scheme: "operate", path: "/gate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newRealCamera(t, test.user, test.password, test.methods, nil)
			s := newSite(t, published(t, tcpService(t, "gate", "rtsp://"+test.given+c.addr+"/h264/main"), "rtsp://cams.example.com/gate"))
			log := &logBuffer{}
			s.peer.relay.log = slog.New(slog.NewTextHandler(log, nil))
			stop := c.shoot(t)
			defer stop()
			got, err := play(t, "rtsp://"+s.front("gate", test.scheme)+test.path, 50)
			if test.log != "" {
				if err == nil || strings.Contains(err.Error(), "401") || log.count(test.log) != 1 {
					t.Errorf("error %v, log %s", err, log.b.String())
				}
				return
			}
			if err != nil {
				t.Fatalf("%v; log %s", err, log.b.String())
			}
			for i, p := range got[1:] {
				if p.SequenceNumber != got[i].SequenceNumber+1 {
					t.Errorf("packet %d after %d", p.SequenceNumber, got[i].SequenceNumber)
				}
			}
		})
	}
}

// A camera's certificate is its own, has no name of use in it, and has expired. It is good if it is the one that the service
// names, and no other is.
func TestCameraTLS(t *testing.T) {
	pinned, roots := cameraCertificate(t)
	other, _ := cameraCertificate(t)
	c := newRealCamera(t, "", "", nil, &tls.Config{Certificates: []tls.Certificate{pinned}})
	stranger := newRealCamera(t, "", "", nil, &tls.Config{Certificates: []tls.Certificate{other}})
	service := func(name, addr string, roots *x509.CertPool) Service {
		svc := published(t, tcpService(t, name, "rtsps://"+addr+"/live"), "rtsp://cams.example.com/"+name)
		svc.RootCAs = roots
		return svc
	}
	s := newSite(t, service("gate", c.addr, roots), service("stranger", stranger.addr, roots), service("trusting", c.addr, nil))
	stop := c.shoot(t)
	defer stop()
	if _, err := play(t, "rtsp://"+s.front("gate", "rtsp")+"/gate", 10); err != nil {
		t.Error(err)
	}
	s.visitBy("stranger", "rtsp").wantCode(tunnel.CodeRefused)
	s.visitBy("trusting", "rtsp").wantCode(tunnel.CodeRefused)
}

func cameraCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "IPCAM"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1e9, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
