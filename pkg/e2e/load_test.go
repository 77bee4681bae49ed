//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"culvert.dev/pkg/netem"
)

// job tells a client process what load to make.
type job struct {
	Kind   string           // down, up, echo, connect, handshake, http, h2, h3, udp, rtsp, rtsp-http, idle, idle-ws, idle-h2, idle-rtsp-http
	Addr   string           // where to connect
	Host   string           // virtual host; with TLS also the name in the certificate
	Path   string           // rtsp: of the camera
	TLS    bool             // speak TLS to Addr
	CA     string           // file of the CA for TLS
	Resume bool             // handshake: with a ticket of the connection before
	Hybrid bool             // handshake: offer the key exchange with ML-KEM, not X25519 alone
	Count  string           // up, udp: the Count listener of the target
	Rate   int              // udp: datagrams per second, of 512 bytes
	Conns  int              // connections at the same time
	Warm   time.Duration    // load before the measurement
	Window time.Duration    // the measurement; latencies and counts outside of it are dropped
	Pids   map[string][]int // processes whose CPU time in the window is wanted
}

// outcome is what a client process measured.
type outcome struct {
	Seconds  float64            // real length of the window
	Bytes    int64              // payload that arrived in the window: down, up
	Ops      int64              // round trips, connections, requests or datagrams in the window
	Sent     int64              // udp: datagrams sent in the window
	P50, P99 time.Duration      // of one operation
	Max      time.Duration      // of one operation, also of one that began before the window
	CPU      map[string]float64 // seconds by the keys of Pids, in the window
	Open     int                // idle: connections that are open and proven
	Err      string             // first error, "" when all went well
}

// load runs one job in a client process and returns what it measured.
func load(t testing.TB, n *netem.Namespace, j job) outcome {
	t.Helper()
	l := startLoad(t, n, j)
	out := l.result(t)
	l.stop()
	return out
}

// loader is a running client process.
type loader struct {
	p       *process
	release io.Closer // its standard input; closing it ends an idle job
}

func startLoad(t testing.TB, n *netem.Namespace, j job) loader {
	t.Helper()
	if j.CA == "" {
		j.CA = certFile("ca.pem")
	}
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := worker(t, "client")
	cmd.Args = append(cmd.Args, string(b))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return loader{startIn(t, n, "load "+j.Kind, cmd), in}
}

// result waits for the line that the process prints when its window is over or, for idle
// jobs, when all connections are open.
func (l loader) result(t testing.TB) outcome {
	t.Helper()
	var out outcome
	select {
	case <-l.p.done:
	case <-l.ready():
	case <-time.After(3 * time.Minute):
	}
	line, _, ok := l.p.find(0, `{"Seconds"`)
	if !ok {
		l.p.dump(t)
		t.Fatalf("%s: no result", l.p.name)
	}
	if err := json.Unmarshal([]byte(line), &out); err != nil {
		t.Fatal(err)
	}
	if out.Err != "" {
		t.Errorf("%s: %s", l.p.name, out.Err)
	}
	return out
}

// ready is closed when the result is in the log.
func (l loader) ready() <-chan struct{} {
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		for {
			l.p.mu.Lock()
			added := l.p.added
			l.p.mu.Unlock()
			if _, _, ok := l.p.find(0, `{"Seconds"`); ok {
				return
			}
			select {
			case <-added:
			case <-l.p.done:
				return
			}
		}
	}()
	return ready
}

// stop closes the connections of an idle job and ends the process.
func (l loader) stop() {
	l.release.Close()
	select {
	case <-l.p.done:
	case <-time.After(10 * time.Second):
		l.p.kill()
	}
}

// The rest of this file runs in the client process.

// client is the state of one job.
type client struct {
	job
	tls  *tls.Config
	get  []byte       // a request
	stop atomic.Bool  // set when the window is over: the workers end
	from atomic.Int64 // start of the window, nanoseconds since epoch; 0 before
	down atomic.Int64 // bytes received by bulk downloads
	sent atomic.Int64 // datagrams

	mu    sync.Mutex
	err   error
	times []time.Duration
	ups   []net.Conn // of players: what goes up by tunnels
}

func runClient() int {
	c := &client{}
	if err := json.Unmarshal([]byte(os.Args[1]), &c.job); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if c.TLS {
		pool := x509.NewCertPool()
		b, err := os.ReadFile(c.CA)
		if err != nil || !pool.AppendCertsFromPEM(b) {
			fmt.Fprintln(os.Stderr, "no CA:", err)
			return 1
		}
		c.tls = &tls.Config{RootCAs: pool, ServerName: c.Host, ClientSessionCache: nil}
	}
	c.get = fmt.Appendf(nil, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", c.Host)
	var out outcome
	var err error
	if strings.HasPrefix(c.Kind, "idle") {
		out, err = c.idle()
	} else if strings.HasPrefix(c.Kind, "rtsp") {
		out, err = c.watchCameras()
	} else {
		out, err = c.timed()
	}
	if err != nil {
		out.Err = err.Error()
	}
	b, _ := json.Marshal(out)
	fmt.Printf("%s\n", b)
	if strings.HasPrefix(c.Kind, "idle") {
		io.Copy(io.Discard, os.Stdin)
	}
	return 0
}

// timed runs a worker per connection and measures one window.
func (c *client) timed() (outcome, error) {
	work := map[string]func(net.Conn) error{
		"down": c.download, "up": c.upload, "echo": c.echo, "http": c.http, "udp": c.udp,
	}[c.Kind]
	ask := map[string]func(int) error{"connect": c.connect, "handshake": c.connect, "h2": c.ask, "h3": c.ask}[c.Kind]
	if work == nil && ask == nil {
		return outcome{}, fmt.Errorf("job %q: unknown", c.Kind)
	}
	var counter net.Conn
	if c.Kind == "up" || c.Kind == "udp" {
		var err error
		if counter, err = net.Dial("tcp", c.Count); err != nil {
			return outcome{}, err
		}
		defer counter.Close()
	}
	var wg sync.WaitGroup
	var conns []net.Conn
	for i := range c.Conns {
		if ask != nil { // and makes its connections itself
			wg.Go(func() { c.fail(ask(i)) })
			continue
		}
		nc, err := c.dial(i)
		if err != nil {
			return outcome{}, err
		}
		conns = append(conns, nc)
		wg.Go(func() { c.fail(work(nc)) })
	}
	time.Sleep(c.Warm)
	before := c.cpu()
	bytes, err := c.moved(counter)
	if err != nil {
		return outcome{}, err
	}
	began, sent := time.Now(), c.sent.Load()
	c.from.Store(began.UnixNano())
	time.Sleep(c.Window)
	after, err := c.moved(counter)
	if err != nil {
		return outcome{}, err
	}
	sent = c.sent.Load() - sent
	out := outcome{Seconds: time.Since(began).Seconds(), Bytes: after - bytes, CPU: c.cpu()}
	c.stop.Store(true)
	for k := range out.CPU {
		out.CPU[k] -= before[k]
	}
	for _, nc := range conns {
		// A worker may sit in a Read or Write that never ends.
		nc.SetDeadline(time.Now().Add(time.Second))
		if c.Kind == "down" || c.Kind == "up" {
			nc.Close()
		}
	}
	wg.Wait()
	if c.Kind == "udp" {
		out.Ops, out.Sent, out.Bytes = out.Bytes, sent, 0
		return out, c.err
	}
	out.Ops = int64(len(c.times))
	if len(c.times) > 0 {
		slices.Sort(c.times)
		out.Max = c.times[len(c.times)-1]
		out.P50 = c.times[len(c.times)/2]
		out.P99 = c.times[len(c.times)*99/100]
	}
	return out, c.err
}

func (c *client) cpu() map[string]float64 {
	m := map[string]float64{}
	for k, pids := range c.Pids {
		m[k] = cpuSeconds(pids)
	}
	return m
}

// moved is the number of bytes, or datagrams, that have arrived at the receiving end so far.
func (c *client) moved(counter net.Conn) (int64, error) {
	switch c.Kind {
	case "up":
		return count(counter, 0)
	case "udp":
		return count(counter, 'U')
	}
	return c.down.Load(), nil
}

// fail keeps the first error of a worker; those after the window are its end.
func (c *client) fail(err error) {
	if err == nil || c.stop.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// dial connects as visitor number i, over loopback each hundred from an address of its own.
func (c *client) dial(i int) (net.Conn, error) { return c.dialWith(i, c.tls) }

func (c *client) dialWith(i int, config *tls.Config) (net.Conn, error) {
	if c.Kind == "udp" {
		return net.Dial("udp", c.Addr)
	}
	d := net.Dialer{
		Timeout:   20 * time.Second,
		KeepAlive: -1,
		Control:   bindLate,
	}
	if strings.HasPrefix(c.Addr, "127.") {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i/100/250), byte(1+i/100%250))}
	}
	nc, err := d.Dial("tcp", c.Addr)
	if err != nil || !c.TLS {
		return nc, err
	}
	if c.Kind == "idle-h2" || c.Kind == "h2" {
		config = config.Clone()
		config.NextProtos = []string{"h2"}
	}
	tc := tls.Client(nc, config)
	tc.SetDeadline(time.Now().Add(20 * time.Second))
	if err := tc.Handshake(); err != nil {
		nc.Close()
		return nil, err
	}
	tc.SetDeadline(time.Time{})
	return tc, nil
}

// bindLate lets connect choose the port. A port that bind has chosen is taken for every
// address of this machine, and the relays need tens of thousands themselves.
func bindLate(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); e != nil {
		return e
	}
	return err
}

func (c *client) download(nc net.Conn) error {
	defer nc.Close()
	if _, err := nc.Write([]byte("D")); err != nil {
		return err
	}
	buf := make([]byte, bulkSize)
	for !c.stop.Load() {
		n, err := nc.Read(buf)
		c.down.Add(int64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *client) upload(nc net.Conn) error {
	defer nc.Close()
	buf := make([]byte, bulkSize)
	buf[0] = 'U'
	for !c.stop.Load() {
		if _, err := nc.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// udp sends datagrams at an even rate, some each millisecond.
func (c *client) udp(nc net.Conn) error {
	defer nc.Close()
	b := make([]byte, 512)
	for began := time.Now(); !c.stop.Load(); time.Sleep(time.Millisecond) {
		for due := int64(time.Since(began).Seconds() * float64(c.Rate)); c.sent.Load() < due; {
			if _, err := nc.Write(b); err == nil {
				c.sent.Add(1)
			} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOBUFS) {
				return err
			}
		}
	}
	return nil
}

// record keeps the latencies of one worker that lie in the window.
func (c *client) record(times []time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.times = append(c.times, times...)
}

// messageSize is the size of the small messages of the round trip rows.
const messageSize = 64

func (c *client) echo(nc net.Conn) error {
	defer nc.Close()
	var times []time.Duration
	defer func() { c.record(times) }()
	var buf [messageSize]byte
	for !c.stop.Load() {
		began := time.Now()
		err := roundTrip(nc, buf[:])
		if c.from.Load() != 0 { // and if it failed, because it was still on its way at the end
			times = append(times, time.Since(began))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func roundTrip(nc net.Conn, buf []byte) error {
	if _, err := nc.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(nc, buf)
	return err
}

// connect makes connections, each for one round trip.
func (c *client) connect(worker int) error {
	var times []time.Duration
	defer func() { c.record(times) }()
	config := c.tls
	if c.Kind == "handshake" {
		config = c.handshakeConfig()
	}
	var buf [messageSize]byte
	for n := 0; !c.stop.Load(); n++ {
		began := time.Now()
		// A source address per worker, because closed connections keep their port for a while.
		nc, err := c.dialWith(worker*100, config)
		if err != nil {
			return err
		}
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		if c.Kind == "handshake" {
			err = c.request(nc, bufio.NewReaderSize(nc, 512))
			if resumed := nc.(*tls.Conn).ConnectionState().DidResume; n > 0 && err == nil && resumed != c.Resume {
				err = fmt.Errorf("connection %d: resumed is %v", n, resumed)
			}
		} else {
			err = roundTrip(nc, buf[:])
		}
		nc.Close()
		if err != nil {
			return err
		}
		if c.from.Load() != 0 {
			times = append(times, time.Since(began))
		}
	}
	return nil
}

// handshakeConfig is for one connection at a time. It verifies a certificate once, so that
// it is the server's work that is measured.
func (c *client) handshakeConfig() *tls.Config {
	config := c.tls.Clone()
	if c.Resume {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	if !c.Hybrid {
		config.CurvePreferences = []tls.CurveID{tls.X25519}
	}
	var verified []byte
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(s tls.ConnectionState) error {
		leaf := s.PeerCertificates[0]
		if bytes.Equal(leaf.Raw, verified) {
			return nil
		}
		verified = leaf.Raw
		_, err := leaf.Verify(x509.VerifyOptions{Roots: c.tls.RootCAs, DNSName: c.Host})
		return err
	}
	return config
}

func (c *client) http(nc net.Conn) error {
	defer nc.Close()
	var times []time.Duration
	defer func() { c.record(times) }()
	r := bufio.NewReader(nc)
	for !c.stop.Load() {
		began := time.Now()
		if err := c.request(nc, r); err != nil {
			return err
		}
		if c.from.Load() != 0 {
			times = append(times, time.Since(began))
		}
	}
	return nil
}

// request asks for a page on a connection that stays.
func (c *client) request(nc net.Conn, r *bufio.Reader) error {
	if _, err := nc.Write(c.get); err != nil {
		return err
	}
	status, n, err := skipHead(r)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") || n == 0 {
		return fmt.Errorf("answer %q, %d bytes", status, n)
	}
	_, err = r.Discard(n)
	return err
}

// perConnection is how many workers share a connection of HTTP/2 or HTTP/3.
const perConnection = 16

// ask makes requests with the HTTP/2 client of net/http or the HTTP/3 client of quic-go: as many
// connections as there are Conns, each with some requests at a time.
func (c *client) ask(i int) error {
	var tr http.RoundTripper
	if c.Kind == "h3" {
		t := &http3.Transport{TLSClientConfig: c.tls, Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, c.Addr, tlsConfig, config)
		}}
		defer t.Close()
		tr = t
	} else {
		t := &http.Transport{
			ForceAttemptHTTP2: true,
			DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return c.dial(i) },
		}
		defer t.CloseIdleConnections()
		tr = t
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for range perConnection {
		wg.Go(func() { c.fail(c.askWith(tr)) })
	}
	return nil
}

func (c *client) askWith(tr http.RoundTripper) error {
	var times []time.Duration
	defer func() { c.record(times) }()
	req, err := http.NewRequest("GET", "https://"+c.Host+"/", nil)
	if err != nil {
		return err
	}
	for !c.stop.Load() {
		began := time.Now()
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || string(b) != "hi" {
			return fmt.Errorf("answer %s %q: %w", resp.Status, b, err)
		}
		if c.from.Load() != 0 {
			times = append(times, time.Since(began))
		}
	}
	return nil
}

// idle opens all connections, proves each with a round trip, and keeps them.
func (c *client) idle() (outcome, error) {
	var out outcome
	var wg sync.WaitGroup
	var next atomic.Int64
	conns := make([]net.Conn, c.Conns)
	for range 32 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= c.Conns {
					return
				}
				var nc net.Conn
				var err error
				if c.Kind == "idle-rtsp-http" {
					nc, err = c.player(i)
				} else if nc, err = c.dial(i); err == nil {
					err = c.prove(nc)
				}
				if err != nil {
					c.fail(fmt.Errorf("connection %d: %w", i, err))
					return
				}
				conns[i] = nc
			}
		})
	}
	wg.Wait()
	idleConns = append(conns, c.ups...)
	for _, nc := range conns {
		if nc != nil {
			out.Open++
		}
	}
	return out, c.err
}

// idleConns keeps the connections of an idle job from being collected and closed.
var idleConns []net.Conn

func (c *client) prove(nc net.Conn) error {
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	defer nc.SetDeadline(time.Time{})
	switch c.Kind {
	case "idle":
		return roundTrip(nc, make([]byte, messageSize))
	case "idle-h2":
		return proveH2(nc, c.Host)
	}
	if _, err := fmt.Fprintf(nc, wsRequest, c.Host); err != nil {
		return err
	}
	// Nothing follows the head until we send, so a small reader cannot swallow a frame.
	status, _, err := skipHead(bufio.NewReaderSize(nc, 512))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 101 ") {
		return fmt.Errorf("answer %q", status)
	}
	if _, err := nc.Write(wsPing); err != nil {
		return err
	}
	reply := make([]byte, len(wsReply))
	if _, err := io.ReadFull(nc, reply); err != nil {
		return err
	}
	if !bytes.Equal(reply, wsReply) {
		return errors.New("wrong echo")
	}
	return nil
}

// proveH2 makes a request over HTTP/2.
func proveH2(nc net.Conn, host string) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range get(host, "/") {
		enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	fr := http2.NewFramer(nc, nc)
	io.WriteString(nc, http2.ClientPreface)
	fr.WriteSettings()
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		return err
	}
	for acked := false; ; {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() && !acked {
				acked = true
				err = fr.WriteSettingsAck()
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				if string(f.Data()) != "hi" {
					return fmt.Errorf("answer %q", f.Data())
				}
				return nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			err = fmt.Errorf("answer %v", f)
		}
		if err != nil {
			return err
		}
	}
}
