package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
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

// dialThrough dials the relay through a proxy and returns what comes first.
func dialThrough(t *testing.T, proxyURL string) (string, error) {
	t.Helper()
	u, err := url.Parse(proxyURL)
	if err != nil {
		t.Fatal(err)
	}
	dial, err := proxyDial([]string{"relay.example.com:443"}, http.ProxyURL(u))
	if err != nil {
		return "", err
	}
	c, err := dial(t.Context(), "tcp", "relay.example.com:443")
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

// What a proxy does not do is said with its name, and without its password.
func TestProxyErrors(t *testing.T) {
	for _, test := range []struct{ answer, want string }{
		{"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "it answers 407 Proxy Authentication Required"},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxProxyAnswer) + "\r\n\r\n", "its answer is too long"},
		{"", "EOF"},
	} {
		address := proxyServer(t, func(_ *testing.T, c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, test.answer)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
		})
		_, err := dialThrough(t, "http://site:secret@"+address)
		if want := fmt.Sprintf("through the proxy http://site:xxxxx@%s: %s", address, test.want); fmt.Sprint(err) != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	if _, err := dialThrough(t, "gopher://x"); fmt.Sprint(err) != "proxy of the environment: gopher:// is none of http, https, socks5" {
		t.Error(err)
	}
}

// A SOCKS5 proxy gets the relay's name, not an address that was looked up here.
func TestSOCKSProxy(t *testing.T) {
	address := proxyServer(t, func(t *testing.T, c net.Conn) {
		b := make([]byte, 4+1+len("relay.example.com")+2)
		if _, err := io.ReadFull(c, b[:3]); err != nil { // version 5, one method, none
			t.Error(err)
		}
		c.Write([]byte{5, 0})
		if _, err := io.ReadFull(c, b); err != nil {
			t.Error(err)
		}
		if name, port := string(b[5:len(b)-2]), binary.BigEndian.Uint16(b[len(b)-2:]); name != "relay.example.com" || port != 443 {
			t.Errorf("asked for %q port %d", name, port)
		}
		c.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 80})
		io.WriteString(c, "hello from the relay")
	})
	if got, err := dialThrough(t, "socks5://"+address); got != "hello from the relay" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Without a proxy the event loop dials by itself; giving up ends a proxy that does not answer.
func TestNoProxy(t *testing.T) {
	none := func(*http.Request) (*url.URL, error) { return nil, nil }
	if dial, err := proxyDial([]string{"relay.example.com:443"}, none); dial != nil || err != nil {
		t.Errorf("dial without a proxy: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	address := proxyServer(t, func(_ *testing.T, c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		cancel()
		io.Copy(io.Discard, c)
	})
	if _, err := throughProxy(ctx, &url.URL{Scheme: "http", Host: address}, "relay.example.com:443"); err == nil {
		t.Error("no error after the context has ended")
	}
}
