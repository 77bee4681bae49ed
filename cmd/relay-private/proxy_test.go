package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
)

// proxyServer accepts one connection and hands it to serve.
func proxyServer(t *testing.T, serve func(t *testing.T, c net.Conn)) (address string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go acceptOne(t, ln, serve, done)
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func acceptOne(t *testing.T, ln net.Listener, serve func(t *testing.T, c net.Conn), done chan<- struct{}) {
	defer close(done)
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	serve(t, c)
}

// way is the way out to relay.example.com through a proxy.
func way(t *testing.T, proxyURL string) *outbound {
	t.Helper()
	find, err := newProxyFinder(proxyURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOutbound([]string{"relay.example.com:443"}, find)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// dialThrough dials the relay through a proxy and returns what comes first.
func dialThrough(t *testing.T, proxyURL string) (string, error) {
	t.Helper()
	c, err := way(t, proxyURL).dialer()(t.Context(), "tcp", "relay.example.com:443")
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("a %T, which the event loop cannot drive by its descriptor", c)
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// An HTTP proxy is asked for a tunnel, and what follows its answer is the relay's.
func TestConnectProxy(t *testing.T) {
	address := proxyServer(t, func(t *testing.T, c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
			return
		}
		user, password, ok := (&http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}).BasicAuth()
		if req.Method != http.MethodConnect || req.Host != "relay.example.com:443" || !ok || user != "site" || password != "p:w" {
			t.Errorf("%s %s, %q, %q", req.Method, req.Host, user, password)
		}
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\nX-Padding: "+strings.Repeat("x", 2000)+"\r\n\r\nhello from the relay")
	})
	if got, err := dialThrough(t, "http://site:p%3Aw@"+address); got != "hello from the relay" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A proxy with TLS has to prove its name.
func TestSecureProxy(t *testing.T) {
	files, err := auth.DevCA(t.TempDir(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	address := proxyServer(t, func(_ *testing.T, nc net.Conn) {
		tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{c}}).Handshake()
	})
	_, err = dialThrough(t, "https://site:secret@"+address)
	if !strings.HasPrefix(fmt.Sprint(err), "through the proxy https://"+address+": tls: ") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

// What a proxy does not do is said with its name and what to do, and without its password.
func TestProxyErrors(t *testing.T) {
	for _, test := range []struct{ login, answer, want string }{
		{"", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=x\r\n\r\n",
			`it answers "407 Proxy Authentication Required": it asks for a user and a password: put them into proxy, as in "http://USER:PASSWORD@HOST:PORT"`},
		{"site:secret@", "HTTP/1.1 407 No\r\nProxy-Authenticate: basic\r\n\r\n", `it answers "407 No": it does not take the user and the password of proxy`},
		{"site:secret@", "HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", `it answers "407 No": it wants another authentication than Basic, which is not supported`},
		{"", "HTTP/1.0 403 Forbidden\r\n\r\n", `it answers "403 Forbidden": it does not allow CONNECT to the relay: whoever runs it has to`},
		{"", "HTTP/1.1 503 Service Unavailable\r\n\r\n", `it answers "503 Service Unavailable": it does not reach the relay`},
		{"", "HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\n\r\n", `it answers "301 Moved"`},
		{"site:secret@", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxProxyAnswer) + "\r\n\r\n", "its answer is too long: is it an HTTP proxy?"},
		{"", "SSH-2.0-x\r\n\r\n", "its answer is not HTTP: is it an HTTP proxy?"},
		{"", "HTTP/1.1 200", "it closes the connection without an answer: are scheme and port right?"},
		{"site:secret@", "", "it closes the connection without an answer: are scheme and port right?"},
	} {
		address := proxyServer(t, func(_ *testing.T, c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, test.answer)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
		})
		_, err := dialThrough(t, "http://"+test.login+address)
		if want := fmt.Sprintf("through the proxy http://%s: %s", address, test.want); fmt.Sprint(err) != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	const nobody = "127.0.0.1:1" // a port that was free a moment ago may be another test's by now
	if _, err := dialThrough(t, "http://"+nobody); !strings.HasPrefix(fmt.Sprint(err), "through the proxy http://"+nobody+": it is not reached: ") {
		t.Error(err)
	}
}

// socksServer is a SOCKS5 proxy that expects each of the messages and answers it.
func socksServer(t *testing.T, script ...string) (address string) {
	return proxyServer(t, func(t *testing.T, c net.Conn) {
		for len(script) > 1 {
			b := make([]byte, len(script[0]))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != script[0] {
				t.Errorf("got %q, %v, want %q", b, err, script[0])
			}
			io.WriteString(c, script[1])
			script = script[2:]
		}
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	})
}

// A SOCKS5 proxy gets the relay's name, not an address that was looked up here.
func TestSOCKSProxy(t *testing.T) {
	const ask = "\x05\x01\x00\x03\x11relay.example.com\x01\xbb"
	const open, keyed = "\x05\x01\x00", "\x05\x02\x00\x02"
	for _, test := range []struct {
		login  string
		script []string
		want   string // "": hello from the relay
	}{
		{"", []string{open, "\x05\x00", ask, "\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50hello from the relay"}, ""},
		{"", []string{open, "\x05\x00", ask, "\x05\x00\x00\x03\x02ab\x00\x50hello from the relay"}, ""},
		{"site:p%3Aw@", []string{keyed, "\x05\x02", "\x01\x04site\x03p:w", "\x01\x00", ask, "\x05\x00\x00\x04" + strings.Repeat("x", 18) + "hello from the relay"}, ""},
		{"site:secret@", []string{keyed, "\x05\x00", ask, "\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50hello from the relay"}, ""},
		{"", []string{open, "\x05\xff"}, `it asks for a user and a password: put them into proxy, as in "socks5://USER:PASSWORD@HOST:PORT"`},
		{"site:secret@", []string{keyed, "\x05\xff"}, "it wants another authentication than a user and a password, which is not supported"},
		{"", []string{open, "\x05\x02"}, "it wants another authentication than a user and a password, which is not supported"},
		{"site:secret@", []string{keyed, "\x05\x02", "\x01\x04site\x06secret", "\x01\x01"}, "it does not take the user and the password of proxy"},
		{"", []string{open, "\x05\x00", ask, "\x05\x02\x00\x01"}, "it does not allow connections to the relay: whoever runs it has to"},
		{"", []string{open, "\x05\x00", ask, "\x05\x05\x00\x01"}, "it does not reach the relay: connection refused"},
		{"", []string{open, "\x05\x00", ask, "\x05\x63\x00\x01"}, "it answers with the unknown code 99"},
		{"", []string{open, "\x05\x00", ask, "\x05\x00\x00\x09"}, "its answer is not SOCKS5: is it a SOCKS5 proxy?"},
		{"", []string{open, "HTTP/1.1 400"}, "its answer is not SOCKS5: is it a SOCKS5 proxy?"},
		{"", []string{open, "\x05"}, "it closes the connection without an answer: are scheme and port right?"},
	} {
		address := socksServer(t, test.script...)
		got, err := dialThrough(t, "socks5://"+test.login+address)
		if test.want == "" {
			if got != "hello from the relay" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		} else if want := "through the proxy socks5://" + address + ": " + test.want; fmt.Sprint(err) != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	var out bytes.Buffer
	throughSocks(struct {
		io.Reader
		io.Writer
	}{strings.NewReader("\x05\x00"), &out}, nil, "[2001:db8::1]:8443")
	if want := open + "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\xfb"; out.String() != want {
		t.Errorf("an address: %q\nwant %q", out.String(), want)
	}
}

// Without a proxy the event loop dials by itself; giving up ends a proxy that does not answer.
func TestNoProxy(t *testing.T) {
	if o := way(t, "none"); o.dialer() != nil || o.proxied("relay.example.com:443") {
		t.Errorf("a way through %v", o.proxies)
	}
	ctx, cancel := context.WithCancel(t.Context())
	address := proxyServer(t, func(_ *testing.T, c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		cancel()
		io.Copy(io.Discard, c)
	})
	if _, err := throughProxy(ctx, &url.URL{Scheme: "http", Host: address}, "relay.example.com:443"); err != context.Canceled {
		t.Errorf("after the context has ended: %v", err)
	}
}

// Which proxy is taken: what the file says goes before the environment.
func TestFindProxy(t *testing.T) {
	environment := func(string) (*url.URL, error) { return url.Parse("http://environment:3128") }
	for _, test := range []struct{ configured, want string }{
		{"", "http://environment:3128"},
		{"none", ""},
		{"http://a:3128", "http://a:3128"},
		{"https://u:p%40@a/", "https://u:p%40@a/"},
		{"socks5h://[2001:db8::1]:1080", "socks5h://[2001:db8::1]:1080"},
		{"proxy:3128", "want http://"},
		{"gopher://x", "want http://"},
		{"http://u:secret@/", "want http://"},
		{"http://u:se cret@x", "want http://"},
		{"http://a:3128/path", "want http://"},
		{"http://:secret@a:3128", "want a user"},
		{"http://u%3A:secret@a:3128", "want a user"},
		{"socks5://u:" + strings.Repeat("x", 256) + "@a", "want a user"},
	} {
		got := ""
		find, err := newProxyFinder(test.configured, environment)
		if err != nil {
			got = err.Error()
		} else if u, _ := find("relay.example.com:443"); u != nil {
			got = u.String()
		}
		if !strings.HasPrefix(got, test.want) || err == nil && got != test.want || strings.Contains(got, "secret") {
			t.Errorf("%q: %q, want %q", test.configured, got, test.want)
		}
	}
}

// A file with a password is not for everybody to read, and a mistake in it does not print the password.
func TestProxySecret(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	dir := t.TempDir()
	if _, err := auth.GenerateKey(filepath.Join(dir, "office.key")); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "private.toml")
	for _, test := range []struct {
		proxy string
		mode  os.FileMode
		want  string
	}{
		{"http://proxy:3128", 0o644, ""},
		{"http://u:secret@proxy:3128", 0o640, ""},
		{"http://u:secret@proxy:3128", 0o644, ":4:9: proxy has a password, and everybody may read this file: run chmod 600 "},
		{"ftp://u:secret@proxy:3128", 0o600, ":4:9: proxy: want http://"},
	} {
		text := fmt.Sprintf("relay = \"relay.example.com\"\nsite = \"office\"\nkey = \"office.key\"\nproxy = %q\n", test.proxy)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, test.mode); err != nil {
			t.Fatal(err)
		}
		_, err := load(name)
		switch {
		case test.want == "" && err != nil, test.want != "" && !strings.HasPrefix(fmt.Sprint(err), name+test.want), err != nil && strings.Contains(err.Error(), "secret"):
			t.Errorf("%s, %v: %v", test.proxy, test.mode, err)
		case err != nil && daemon.ExitCode(err) != daemon.ExitUsage:
			t.Errorf("exit code %d", daemon.ExitCode(err))
		}
	}
}

// A proxy may answer whatever it likes: it is read to its bound, and what comes behind the answer is left.
func FuzzProxyAnswer(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\n\r\nrest", false)
	f.Add("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 5\r\n\r\nhello", false)
	f.Add("\x05\x02\x01\x00\x05\x00\x00\x03\x02ab\x00\x50rest", true)
	f.Add("\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50rest", true)
	f.Fuzz(func(t *testing.T, answer string, isSOCKS bool) {
		r := strings.NewReader(answer)
		c := struct {
			io.Reader
			io.Writer
		}{r, io.Discard}
		ask, most := connect, maxProxyAnswer
		if isSOCKS {
			ask, most = throughSocks, 2+2+5+255+2
		}
		err := ask(c, url.UserPassword("site", "secret"), "relay.example.com:443")
		if used := len(answer) - r.Len(); used > most {
			t.Errorf("%d bytes read", used)
		}
		if err == nil && !isSOCKS && !strings.HasSuffix(answer[:len(answer)-r.Len()], "\r\n\r\n") {
			t.Error("more or less than the answer was read")
		}
		if err != nil && strings.Contains(err.Error(), "secret") && !strings.Contains(answer, "secret") {
			t.Error(err)
		}
	})
}
