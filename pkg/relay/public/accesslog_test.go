package public

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"culvert.dev/pkg/relay"
)

// line is one of the access log.
type line struct {
	Time, Site, Service, Visitor, User, Subject, Operator, Proto, TLS string
	Method, Host, Path, Query, Session, Link, Error                   string
	Status                                                            int
	Received, Sent                                                    uint64
	DatagramsReceived                                                 uint64   `json:"datagrams_received"`
	DatagramsSent                                                     uint64   `json:"datagrams_sent"`
	Duration                                                          float64  `json:"duration_ms"`
	FirstByte                                                         *float64 `json:"first_byte_ms"`
	Stream                                                            *uint32
}

// String is what a test expects of the line.
func (l line) String() string {
	s := l.Proto
	for _, part := range []string{l.Operator, l.TLS, l.Site, l.Service, l.Method, l.Host, l.Path, l.Query} {
		if part != "" {
			s += " " + part
		}
	}
	if l.Status != 0 {
		s += fmt.Sprint(" ", l.Status)
	}
	if l.Error != "" {
		s += " " + l.Error
	}
	return s
}

// logged collects what a relay logs.
type logged struct {
	t     *testing.T
	lines chan string
	read  []line
}

func (l *logged) write(lines []byte) {
	for one := range bytes.Lines(lines) {
		l.lines <- string(one)
	}
}

// want returns the next line, which must be that.
func (l *logged) want(text string) line {
	l.t.Helper()
	var got line
	select {
	case one := <-l.lines:
		d := json.NewDecoder(strings.NewReader(one))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil || !strings.HasSuffix(one, "}\n") {
			l.t.Fatalf("%q: %v", one, err)
		}
	case <-time.After(time.Minute):
		l.t.Fatalf("no line, want %q", text)
	}
	if got.String() != text {
		l.t.Fatalf("line %q, want %q: %+v", got, text, got)
	}
	if at, err := time.Parse("2006-01-02T15:04:05.000Z", got.Time); err != nil || time.Since(at).Abs() > time.Minute {
		l.t.Errorf("time %q, %v", got.Time, err)
	}
	if host, _, err := net.SplitHostPort(got.Visitor); err != nil || host != "127.0.0.1" {
		l.t.Errorf("visitor %q, %v", got.Visitor, err)
	}
	l.read = append(l.read, got)
	return got
}

// What becomes of visitors is in the access log, one line each, and adds up to what the status tells.
func TestAccessLog(t *testing.T) {
	log := &logged{t: t, lines: make(chan string, 100)}
	r := newTestRelay3(t, func(r *Relay) { r.AccessLog = log.write })
	gate := make(chan bool)
	app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		switch req.URL.Path {
		case "/missing":
			http.NotFound(w, req)
		case "/wait":
			gate <- true
			<-req.Context().Done()
		case "/half":
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("half of it"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			w.Write(append([]byte("you said "), body...))
		}
	}))
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	ws := target(t, func(c net.Conn, br *bufio.Reader) {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", req.Header.Get("Upgrade"))
		io.Copy(c, br)
	})
	s := r.connect("office", map[string]string{"app": app, "plain": app, "two": app, "echo": echo, "ws": ws, "dead": "127.0.0.1:1"},
		"app", "https://app.test", "two", "https://two.test", "plain", "http://plain.test", "ws", "https://ws.test", "dead", "https://dead.test", "gone", "tcp://127.0.0.1:0",
		"echo", "", "dns", "udp://127.0.0.1:0")
	get := func(method, url, body string) {
		t.Helper()
		req, _ := http.NewRequest(method, url, strings.NewReader(body))
		res, err := r.client().Do(req)
		if err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}

	get("GET", "https://app.test/a/b?secret=1", "")
	l := log.want("HTTP/1.1 1.3 office app GET app.test /a/b 200")
	if l.Sent < 100 || l.Received != 0 || l.FirstByte == nil || *l.FirstByte > l.Duration || l.Stream == nil || l.Link != "wss" || l.Session != s.session.shortID() {
		t.Errorf("%+v", l)
	}
	get("POST", "http://plain.test/%22?x", "some body")
	if l = log.want("HTTP/1.1 office plain POST plain.test /%22 200"); l.Received != 9 {
		t.Errorf("%+v", l)
	}
	get("HEAD", "https://app.test/missing", "")
	log.want("HTTP/1.1 1.3 office app HEAD app.test /missing 404")

	// Other versions of HTTP.
	for version, c := range map[string]*http.Client{"HTTP/2": r.client2(), "HTTP/3": r.client3()} {
		for _, test := range []struct{ url, body, want string }{
			{"https://two.test/a?x", "", "1.3 office two GET two.test /a 200"},
			{"https://two.test/b", "some body", "1.3 office two POST two.test /b 200"},
			{"https://nobody.test/", "", "1.3 GET nobody.test / 503 away"},
		} {
			method := "GET"
			if test.body != "" {
				method = "POST"
			}
			req, _ := http.NewRequest(method, test.url, strings.NewReader(test.body))
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			l := log.want(version + " " + test.want)
			if frames := l.Received - uint64(len(test.body)); frames > 8 || l.Status == 200 && l.Sent == 0 {
				t.Errorf("%+v", l)
			}
		}
	}

	// What the relay says by itself.
	get("GET", "http://app.test/x", "")
	log.want("HTTP/1.1 GET app.test /x 301")
	get("GET", "https://nobody.invalid/", "")
	log.want("HTTP/1.1 1.3 GET nobody.invalid / 404 not-found")
	get("GET", "https://later.test/", "")
	log.want("HTTP/1.1 1.3 GET later.test / 503 away")
	get("GET", "https://relay.test/there", "")
	log.want("HTTP/1.1 1.3 GET relay.test /there 404 not-found")
	get("POST", "https://relay.test/.culvert/join", "x")
	log.want("HTTP/1.1 1.3 POST relay.test /.culvert/join 404 not-found")
	v := r.dial(true)
	v.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
	log.want("HTTP/1.1 1.3 400 malformed")

	// What goes wrong behind it, or in front.
	get("GET", "https://dead.test/", "")
	log.want("HTTP/1.1 1.3 office dead GET dead.test / 502 unreachable")
	get("GET", "https://app.test/half", "")
	log.want("HTTP/1.1 1.3 office app GET app.test /half 200 bad-answer")
	v = r.dial(true)
	v.send("GET /wait HTTP/1.1\r\nHost: app.test\r\n\r\n")
	<-gate
	v.Conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0) // the end of stream alone might be that of a simple client
	v.Close()
	log.want("HTTP/1.1 1.3 office app GET app.test /wait cancelled")
	v = r.dial(true)
	v.send("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx")
	log.want("HTTP/1.1 1.3 office app POST app.test / 400 malformed")

	// Connections have one line at their end.
	say := func(v *testVisitor) {
		t.Helper()
		io.WriteString(v.Conn, "hello")
		b := make([]byte, 5)
		if _, err := io.ReadFull(v.Reader, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
		v.Close()
	}
	for _, protocol := range []string{"websocket", "other"} {
		v = r.dial(true)
		v.send("GET /chat HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n")
		if res, err := http.ReadResponse(v.Reader, nil); err != nil || res.StatusCode != 101 {
			t.Fatal(res, err)
		}
		say(v)
		proto := map[string]string{"websocket": "websocket", "other": "HTTP/1.1"}[protocol]
		if l = log.want(proto + " 1.3 office ws GET ws.test /chat 101"); l.Received != 5 || l.Sent < 5 {
			t.Errorf("%+v", l)
		}
	}
	o := r.operator("operator", "office")
	c := o.mustOpen("echo")
	say(&testVisitor{t, c, bufio.NewReader(c)})
	if l = log.want("operate alice office echo"); l.Received != 5 || l.Sent != 5 {
		t.Errorf("%+v", l)
	}
	if c, err := net.Dial("tcp", r.tcpPort("office")); err == nil { // or it has been reset already
		io.Copy(io.Discard, c)
		c.Close()
	}
	log.want("tcp office gone not-found")

	// A flow, at its end.
	flowsOf(s, "office")
	c, err := net.Dial("udp", r.udpPort("office"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		io.WriteString(c, "ping")
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	onLoop(s.session.loop.Loop, func() {
		for _, p := range s.session.group.ports {
			if p.flows != nil {
				for _, f := range p.flows.of {
					f.end()
				}
			}
		}
	})
	if l = log.want("udp office dns"); l.Received != 12 || l.Sent != 33 || l.DatagramsReceived != 3 || l.DatagramsSent != 3 {
		t.Errorf("%+v", l)
	}

	// It adds up.
	type sum struct {
		received, sent, total uint64
		requests              Requests
		errors                [numWords]uint64
	}
	sums := make(map[string]sum)
	var own uint64
	for _, l := range log.read {
		s := sums[l.Service]
		s.received += l.Received
		s.sent += l.Sent
		s.total++
		if l.Method != "" && l.Proto != "operate" {
			s.requests[protocol(l.Proto)][l.Status/100]++
		}
		for i, w := range Words {
			if w == l.Error && w != "" {
				s.errors[i]++
			}
		}
		sums[l.Service] = s
	}
	st := r.Status(t.Context())
	for _, svc := range st.Sessions[0].Services {
		svc.Errors[fine] = 0
		if got := (sum{svc.Received, svc.Sent, svc.Total, svc.Requests, svc.Errors}); got != sums[svc.Name] {
			t.Errorf("%s: the status tells  %v\nthe access log tells %v", svc.Name, got, sums[svc.Name])
		}
		if svc.Visitors != 0 {
			t.Errorf("%s: %d visitors", svc.Name, svc.Visitors)
		}
	}
	for i, n := range st.Refused {
		if i > 0 && n != sums[""].errors[i] {
			t.Errorf("%d answered with %q, want %d", n, Words[i], sums[""].errors[i])
		}
		own += n
	}
	if own != sums[""].total {
		t.Errorf("%d requests answered by the relay itself, %d lines", own, sums[""].total)
	}
	select {
	case one := <-log.lines:
		t.Errorf("one line more: %s", one)
	default:
	}
}

// Whom the policy of a service turns away has a line of that service.
func TestAccessLogPolicy(t *testing.T) {
	log := &logged{t: t, lines: make(chan string, 100)}
	r := newTestRelay(t, false, func(r *Relay) { r.AccessLog = log.write })
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	s := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test", "db", "tcp://127.0.0.1:0")
	s.demand(&relay.Policy{Users: map[string]string{"anna": string(hash)}, Methods: []string{"GET", "POST"}, MaxBody: 4}, "app", "https://app.test")
	const end = " HTTP/1.1|Host: app.test|Authorization: Basic YW5uYTpzZWNyZXQ="
	r.ask(true, "GET /"+end)
	if l := log.want("HTTP/1.1 1.3 office app GET app.test / 200"); l.User != "anna" {
		t.Errorf("%+v", l)
	}
	r.ask(true, "GET / HTTP/1.1|Host: app.test")
	log.want("HTTP/1.1 1.3 office app GET app.test / 401 auth")
	r.ask(true, "DELETE /"+end)
	log.want("HTTP/1.1 1.3 office app DELETE app.test / 405 policy")
	r.ask(true, "POST /"+end+"|Content-Length: 5", "12345")
	log.want("HTTP/1.1 1.3 office app POST app.test / 413 limit")
	s.demand(&relay.Policy{Deny: prefixList("127.0.0.0/8")}, "db", "tcp://127.0.0.1:0")
	if c, err := net.Dial("tcp", r.tcpPort("office")); err == nil { // or it has been reset already
		c.Close()
	}
	log.want("tcp office db policy")
	for _, svc := range r.Status(t.Context()).Sessions[0].Services {
		if svc.Name == "db" && svc.Errors[wordPolicy] != 1 {
			t.Errorf("%+v", svc)
		}
	}
}

// What is counted for a service goes on where it was after a takeover, a withdrawal of others and a cut, and
// never falls while visitors of a session before finish.
func TestTallies(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	first := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "m1", Process: "p1"}, map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0")
	status := func() ServiceStatus {
		t.Helper()
		for _, s := range r.Status(t.Context()).Sessions {
			if s.Active && len(s.Services) > 0 {
				return s.Services[0]
			}
		}
		t.Fatal("no service")
		panic("unreachable")
	}
	talk := func(c net.Conn, text string) {
		t.Helper()
		io.WriteString(c, text)
		if _, err := io.ReadFull(c, make([]byte, len(text))); err != nil {
			t.Fatal(err)
		}
	}
	c1, err := net.Dial("tcp", r.tcpPort("office"))
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	talk(c1, "12345")
	if st := status(); st.Received != 5 || st.Sent != 5 || st.Visitors != 1 || st.Total != 1 {
		t.Errorf("a connection counts while it runs: %+v", st)
	}

	second := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "m2", Process: "p2"}, map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0")
	if _, err := r.Promote(t.Context(), "office", second.session.shortID(), -1); err != nil {
		t.Fatal(err)
	}
	c2, err := net.Dial("tcp", r.tcpPort("office"))
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	talk(c1, "678")
	talk(c2, "12")
	if st := status(); st.Received != 10 || st.Sent != 10 || st.Visitors != 2 || st.Total != 2 {
		t.Errorf("after a takeover: %+v", st)
	}
	for _, s := range []*testSite{first, second} {
		onLoop(s.session.loop.Loop, func() { s.session.close(nil) })
	}
	io.Copy(io.Discard, c1)
	io.Copy(io.Discard, c2)
	r.connect("office", nil, "db", "tcp://127.0.0.1:0")
	if st := status(); st.Received != 10 || st.Sent != 10 || st.Visitors != 0 || st.Total != 2 {
		t.Errorf("after another session: %+v", st)
	}
	onLoop(first.session.loop.Loop, func() {
		if n := len(first.session.group.tallies); n != 1 {
			t.Errorf("%d tallies", n)
		}
	})
}

// tcpPort is where the site's only tcp service is to be found.
func (r *testRelay) tcpPort(site string) (addr string) {
	r.mu.Lock()
	g := r.groups[site]
	r.mu.Unlock()
	onLoop(g.loop.Loop, func() {
		for _, p := range g.ports {
			if p.flows == nil {
				addr = p.Addr().String()
			}
		}
	})
	return addr
}
