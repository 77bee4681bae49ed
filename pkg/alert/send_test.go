package alert

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// message is one as senders get them.
func message() *Message {
	at := time.Date(2026, 11, 23, 10, 4, 0, 0, time.UTC)
	until := at.Add(90 * time.Second)
	return &Message{Relay: "relay.example.com", Time: at, Alerts: []Told{
		{Alert: Alert{ID: "1", Kind: "site-away", Subject: "büro", Text: "no session since 10:04", Since: at}, Status: "firing", Times: 3},
		{Alert: Alert{ID: "2", Kind: "disk", Subject: "/state", Text: "3 % free", Since: at, Resolved: &until}, Status: "resolved"},
	}, More: 2}
}

func parse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWebhook(t *testing.T) {
	secret := []byte("only the two of us know")
	var got Message
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("%s %v", r.Method, r.Header)
		}
		if sig := r.Header.Get(SignatureField); !hmac.Equal([]byte(sig), []byte(Sign(secret, time.Unix(1795428240, 0), body))) {
			t.Errorf("signature %q", sig)
		}
		got = Message{}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Error(err)
		}
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/hook", http.StatusTemporaryRedirect)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	for _, path := range []string{"/hook", "/moved"} {
		hook := &Webhook{URL: parse(t, srv.URL+path), Secret: secret, Roots: roots, Header: map[string]string{"Authorization": "Bearer x"}}
		if err := hook.Send(context.Background(), message()); err != nil {
			t.Fatal(err)
		}
		if len(got.Alerts) != 2 || got.Alerts[0].Subject != "büro" || got.Alerts[0].Status != "firing" || got.Alerts[1].Resolved == nil || got.Relay != "relay.example.com" || got.More != 2 {
			t.Errorf("%+v", got)
		}
	}
	if err := (&Webhook{URL: parse(t, srv.URL)}).Send(context.Background(), message()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without trust: %v", err)
	}
}

// What servers do instead of taking a message.
func TestWebhookTroubles(t *testing.T) {
	stop := make(chan struct{})
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("another host was asked") }))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/fails/secret":
			http.Error(w, "broken", http.StatusBadGateway)
		case "/elsewhere":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		case "/get":
			http.Redirect(w, r, "/ok", http.StatusSeeOther)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusPermanentRedirect)
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		case "/hangs":
			select {
			case <-stop:
			case <-r.Context().Done():
			}
		case "/aborts":
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	defer close(stop)
	for path, want := range map[string]string{
		"/fails/secret": "502 Bad Gateway", "/elsewhere": "redirects to " + other.URL, "/get": "loses the message", "/loop": "too many redirects",
		"/hangs": "deadline", "/aborts": "EOF", "/endless": "",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if path == "/hangs" {
			ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
		}
		err := (&Webhook{URL: parse(t, srv.URL+path)}).Send(ctx, message())
		cancel()
		if errors.Is(err, context.DeadlineExceeded) { // also where it has hit the connecting, which has other words for it
			err = context.DeadlineExceeded
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", path, err)
		}
		if err != nil && strings.Contains(err.Error(), path) {
			t.Errorf("the error tells the path: %v", err)
		}
	}
	if s := (&Webhook{URL: parse(t, srv.URL+"/fails/secret?key=x")}).String(); strings.Contains(s, "secret") || strings.Contains(s, "key") {
		t.Errorf("%q tells the path", s)
	}
	for in, ok := range map[string]bool{
		"https://hooks.example.com/a?b": true, "http://127.0.0.1:8080/": true, "http://localhost/": true, "http://[::1]/": true,
		"http://hooks.example.com/": false, "ftp://x/": false, "/x": false, "https://u:p@x/": false, "https://x/#y": false, "http://127.0.0.1.example.com/": false,
	} {
		if err := CheckWebhook(parse(t, in)); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// A webhook that is broken for a while gets everything when it works again, and stays in order.
func TestWebhookRecovers(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	got := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m Message
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		if broken.Load() {
			got <- "!"
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		got <- brief(&m)
	}))
	defer srv.Close()
	c := &Center{Retry: time.Millisecond}
	c.SetSenders(&Webhook{URL: parse(t, srv.URL)})
	defer running(c)()
	c.Observe("site-away", away("office"))
	for range 3 {
		if m := <-got; m != "!" {
			t.Fatal(m)
		}
	}
	broken.Store(false)
	for m := range got {
		if m == "+office" {
			break
		} else if m != "!" {
			t.Fatal(m)
		}
	}
	c.Observe("site-away", nil)
	if m := <-got; m != "-office" {
		t.Error(m)
	}
}

// smtpServer is one that takes mail, by TLS if it has a certificate.
type smtpServer struct {
	net.Listener
	tls      *tls.Config // STARTTLS; nil: it has none
	implicit bool        // TLS comes first
	hang     bool        // behind EHLO
	auth     string      // base64 of what AUTH PLAIN has to say; "": anybody may send
	refuse   string      // what RCPT is answered with

	mu     sync.Mutex
	mails  []string
	secure bool // the last one came by TLS
	wg     sync.WaitGroup
}

func (s *smtpServer) serve() {
	defer s.wg.Done()
	for {
		nc, err := s.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() { s.session(nc) })
	}
}

func (s *smtpServer) session(nc net.Conn) {
	defer func() { nc.Close() }()
	secure := false
	if s.implicit {
		nc, secure = tls.Server(nc, s.tls), true
	}
	r := bufio.NewReader(nc)
	say := func(format string, a ...any) { fmt.Fprintf(nc, format+"\r\n", a...) }
	say("220 mail.example.com ESMTP")
	in := s.auth == ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			if s.hang {
				io.Copy(io.Discard, r)
				return
			}
			say("250-mail.example.com")
			if s.tls != nil && !secure {
				say("250-STARTTLS")
			}
			if s.auth != "" {
				say("250-AUTH PLAIN")
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go ahead")
			nc, secure = tls.Server(nc, s.tls), true
			r = bufio.NewReader(nc)
		case "AUTH":
			if in = arg == "PLAIN "+s.auth; !in {
				say("535 authentication failed")
				continue
			}
			say("235 ok")
		case "MAIL":
			if !in {
				say("530 authentication required")
				continue
			}
			say("250 ok")
		case "RCPT":
			if s.refuse != "" {
				say("%s", s.refuse)
				continue
			}
			say("250 ok")
		case "DATA":
			say("354 go ahead")
			var b strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				b.WriteString(strings.TrimPrefix(line, "."))
			}
			s.mu.Lock()
			s.mails = append(s.mails, b.String())
			s.secure = secure
			s.mu.Unlock()
			say("250 queued")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

func startSMTP(t *testing.T, s *smtpServer) (address string) {
	t.Helper()
	var err error
	if s.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.wg.Add(1)
	go s.serve()
	t.Cleanup(func() { s.Listener.Close(); s.wg.Wait() })
	return s.Addr().String()
}

// certificate makes one for localhost, and the pool that trusts it.
func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func TestMail(t *testing.T) {
	config, roots := certificate(t)
	s := &smtpServer{tls: config, auth: base64.StdEncoding.EncodeToString([]byte("\x00relay\x00secret"))}
	m := &Mail{Server: startSMTP(t, s), User: "relay", Password: "secret", From: "Culvert <relay@example.com>", To: []string{"ops@example.com", "Büro <office@example.com>"}, Roots: roots}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Send(context.Background(), message()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mails) != 1 || !s.secure {
		t.Fatalf("%d mails, TLS %v", len(s.mails), s.secure)
	}
	got, err := mail.ReadMessage(strings.NewReader(s.mails[0]))
	if err != nil {
		t.Fatal(err)
	}
	subject, _ := new(mime.WordDecoder).DecodeHeader(got.Header.Get("Subject"))
	if subject != "[culvert relay.example.com] 4 alerts, 3 of them new" || got.Header.Get("Auto-Submitted") != "auto-generated" || got.Header.Get("Message-Id") == "" {
		t.Errorf("%q %v", subject, got.Header)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(got.Body))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"site-away büro", "no session since 10:04", "begun 3 times", "resolved 2026-11-23 10:05:30 UTC, after 1m30s", "2 more alerts", "relay relay.example.com"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestMailTroubles(t *testing.T) {
	config, roots := certificate(t)
	send := func(s *smtpServer, change func(*Mail)) error {
		t.Helper()
		m := &Mail{Server: startSMTP(t, s), From: "relay@example.com", To: []string{"ops@example.com"}, Roots: roots}
		if change != nil {
			change(m)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if s.hang {
			ctx, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
		}
		return m.Send(ctx, message())
	}
	if err := send(&smtpServer{}, nil); err != nil {
		t.Errorf("without TLS, on this machine: %v", err)
	}
	if err := send(&smtpServer{tls: config}, func(m *Mail) { m.Roots = nil }); err == nil {
		t.Error("an authority that nobody knows is trusted")
	}
	if err := send(&smtpServer{refuse: "550 no such user"}, nil); err == nil || !strings.Contains(err.Error(), "550") {
		t.Errorf("refused: %v", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("\x00relay\x00secret"))
	if err := send(&smtpServer{tls: config, auth: auth}, func(m *Mail) { m.User, m.Password = "relay", "wrong" }); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
	begin := time.Now()
	if err := send(&smtpServer{hang: true}, nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 15*time.Second {
		t.Errorf("hangs: %v after %v", err, time.Since(begin))
	}
	// A name that is not this machine, as far as we can tell: TLS is mandatory, and a server without gets nothing.
	m := &Mail{Server: "smtp.example.com:587", From: "relay@example.com", To: []string{"ops@example.com"}}
	if !mustTLS("smtp.example.com") || mustTLS("localhost") || mustTLS("::1") || mustTLS("127.9.9.9") || !mustTLS("10.0.0.1") {
		t.Error("who has to have TLS")
	}
	for _, bad := range []func(m *Mail){
		func(m *Mail) { m.Server = "smtp.example.com" }, func(m *Mail) { m.Server = ":25" }, func(m *Mail) { m.Server = "a:b" },
		func(m *Mail) { m.From = "nobody" }, func(m *Mail) { m.To = nil }, func(m *Mail) { m.To = []string{"a@b", "c"} },
		func(m *Mail) { m.User = "x" }, func(m *Mail) { m.Password = "x" },
	} {
		other := *m
		bad(&other)
		if err := other.Check(); err == nil {
			t.Errorf("%+v is taken", other)
		}
	}
}

// No text of an alert can add a line to the head of a mail.
func TestSubject(t *testing.T) {
	m := message()
	m.More = 0
	m.Alerts = m.Alerts[:1]
	m.Alerts[0].Text = "x\r\nBcc: everybody@example.com\r\n\r\nbuy"
	if s := subject(m); strings.ContainsAny(s, "\r\n") || !strings.Contains(s, "büro: x  Bcc") {
		t.Errorf("%q", s)
	}
	m.Alerts[0].Status = "resolved"
	if s := subject(m); s != "[culvert relay.example.com] resolved: site-away büro" {
		t.Errorf("%q", s)
	}
	m.Alerts[0].Status = "firing"
	m.Alerts[0].Text = strings.Repeat("ü", 500)
	if s := subject(m); len(s) > 300 {
		t.Errorf("%q", s)
	}
}
