package private

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"culvert.dev/pkg/rtsp"
)

// login is how a camera of a test authenticates.
type login struct {
	nonce  string
	offers []string // WWW-Authenticate fields, %s is the nonce
}

// check reports whether the Authorization of a request, as read returns it, is right for that user and password.
func (l *login) check(request, user, password string) bool {
	method, rest, _ := strings.Cut(request, " ")
	url, _, _ := strings.Cut(rest, " ")
	_, field, ok := strings.Cut(request, "\nAuthorization: ")
	if !ok {
		return false
	}
	field, _, _ = strings.Cut(field, "\n")
	a, err := rtsp.ParseAuthorization([]byte(field))
	switch {
	case err != nil || a.User != user:
		return false
	case a.Basic:
		return a.Password == password
	case a.Nonce != l.nonce || a.URI != url:
		return false
	}
	secret := []byte(user + ":" + a.Realm + ":" + password)
	ha1 := fmt.Sprintf("%x", md5.Sum(secret))
	if a.Algorithm == "SHA-256" {
		sum := sha256.Sum256(secret)
		ha1 = hex.EncodeToString(sum[:])
	}
	return a.Verify(method, ha1)
}

func (l *login) refuse(cseq string) string {
	text := "RTSP/1.0 401 Unauthorized\nCSeq: " + cseq + "\n"
	for _, o := range l.offers {
		text += "WWW-Authenticate: " + strings.ReplaceAll(o, "%s", l.nonce) + "\n"
	}
	return text
}

// serve answers requests until one succeeds, and returns how many there were.
func (l *login) serve(c *rtspPeer, user, password string) (asked int) {
	for {
		request := c.read()
		asked++
		cseq := field(request, "CSeq")
		if l.check(request, user, password) {
			c.send("RTSP/1.0 200 OK\nCSeq: " + cseq + "\n")
			return asked
		}
		c.send(l.refuse(cseq))
	}
}

func field(message, name string) string {
	_, v, _ := strings.Cut(message, "\n"+name+": ")
	v, _, _ = strings.Cut(v, "\n")
	return v
}

// The camera's password is the target's, and the visitor hears nothing of it. Only the first request asks twice.
func TestCameraLogin(t *testing.T) {
	digest := `Digest realm="cam, \"1\"", nonce="%s"`
	for name, offers := range map[string][]string{
		"basic":           {`Basic realm="cam"`},
		"digest":          {digest},
		"digest qop":      {digest + `, qop="auth", algorithm=MD5, opaque="x"`},
		"sha-256":         {digest + `, qop="auth,auth-int", algorithm=SHA-256`},
		"several":         {`Basic realm="cam"`, digest},
		"in one field":    {`Basic realm="cam", ` + digest + `, stale=false`},
		"unknown and md5": {`NTLM`, digest + `, algorithm=SHA-512-256`, digest + `, algorithm="MD5"`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeCamera(t)
			s := newSite(t, f.service(t, "admin:p%40ss:w%2Ford", "/live"))
			v, _ := s.watch(f)
			l := &login{nonce: "n1", offers: offers}
			ask := func(n int) {
				v.send(fmt.Sprintf("GET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: %d\nAuthorization: Basic eDp5\n", n))
			}
			answered := func(n int) { v.want(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n", n)) }
			serve := func(c *rtspPeer, want int) {
				t.Helper()
				if got := l.serve(c, "admin", "p@ss:w/ord"); got != want {
					t.Errorf("%d requests, want %d", got, want)
				}
			}
			ask(1)
			c := f.accept()
			serve(c, 2)
			answered(1)
			for n := 2; n < 5; n++ {
				ask(n)
				serve(c, 1)
				answered(n)
			}
			if strings.Contains(offers[len(offers)-1], "Digest") {
				l.nonce = "n2" // without a word that the old one is stale
				ask(5)
				serve(c, 2)
				answered(5)
				l.nonce, l.offers = "n3", []string{digest + ", stale=TRUE"}
				ask(6)
				serve(c, 2)
				answered(6)
			}
		})
	}
}

// Requests that come all at once are answered in their order, although each has to be asked again.
func TestCameraLoginPipelined(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "admin:secret", "/live"))
	v, _ := s.watch(f)
	l := &login{nonce: "n1", offers: []string{`Digest realm="cam", nonce="%s"`}}
	var all []byte
	for n := range 6 {
		all = append(all, v.message(fmt.Sprintf("GET_PARAMETER rtsp://cams.example.com/gate/%d RTSP/1.0\nCSeq: %d\n", n, n))...)
	}
	v.sendRaw(all)
	c := f.accept()
	var served []string
	for len(served) < 6 {
		request := c.read()
		if !l.check(request, "admin", "secret") {
			c.send(l.refuse(field(request, "CSeq")))
			continue
		}
		served = append(served, request[strings.Index(request, "/live")+6:][:1])
		c.send("RTSP/1.0 200 OK\nCSeq: " + field(request, "CSeq") + "\n")
	}
	if got := strings.Join(served, ""); got != "012345" {
		t.Errorf("order %s", got)
	}
	for n := range 6 {
		v.want(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n", n))
	}
}

// Without the right password there is no picture, and no word why but in the log. It is not tried again and again: cameras
// shut out who guesses.
func TestCameraLoginFails(t *testing.T) {
	digest := []string{`Digest realm="cam", nonce="%s"`, `Basic realm="cam"`}
	for name, test := range map[string]struct {
		user   string
		offers []string
		tries  int // with a password
		log    string
	}{
		"none":    {"", digest, 0, "camera wants a user name and password: put them into the target"},
		"wrong":   {"admin:wrong", digest, 1, "camera refuses the password"},
		"basic":   {"admin:wrong", digest[1:], 1, "camera refuses the password"},
		"unknown": {"admin:secret", []string{"Bearer"}, 0, "neither Basic nor Digest"},
		"nothing": {"admin:secret", nil, 0, "neither Basic nor Digest"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeCamera(t)
			s := newSite(t, f.service(t, test.user, "/live"))
			log := &logBuffer{}
			s.peer.relay.log = slog.New(slog.NewTextHandler(log, nil))
			l := &login{nonce: "n1", offers: test.offers}
			tried := 0
			for n := range 3 {
				v, stream := s.watch(f)
				v.send("DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 3\n")
				c := f.accept()
				for range 2 {
					request := c.read()
					if strings.Contains(request, "\nAuthorization: ") {
						tried++
					}
					c.send(l.refuse(field(request, "CSeq")))
					if test.tries == 0 || n > 0 || tried > 0 {
						break
					}
				}
				v.want("RTSP/1.0 503 Service Unavailable\nCSeq: 3\n")
				stream.closeWrite()
			}
			if tried != test.tries {
				t.Errorf("a password was tried %d times, want %d", tried, test.tries)
			}
			if n := log.count(test.log); n != 1 {
				t.Errorf("%q is %d times in the log: %s", test.log, n, log.b.String())
			}
			if log.count("secret") > 0 || log.count("wrong") > 0 {
				t.Errorf("the log has the password: %s", log.b.String())
			}
		})
	}
}
