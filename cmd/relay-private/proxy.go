package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/proxy"
)

// maxProxyAnswer bounds what a proxy may say before the tunnel begins.
const maxProxyAnswer = 16 << 10

// proxyDial returns how to dial the public relays through the proxies that find names, or nil if none of them needs
// one. Find is http.ProxyFromEnvironment: HTTPS_PROXY and NO_PROXY, in either case.
func proxyDial(relays []string, find func(*http.Request) (*url.URL, error)) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	proxies := make(map[string]*url.URL)
	for _, address := range relays {
		u, err := find(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
		if err != nil {
			return nil, fmt.Errorf("proxy of the environment: %w", err)
		}
		if u == nil {
			continue
		}
		switch u.Scheme {
		case "http", "https", "socks5", "socks5h":
		default:
			return nil, fmt.Errorf("proxy of the environment: %s:// is none of http, https, socks5", u.Scheme)
		}
		proxies[address] = u
	}
	if len(proxies) == 0 {
		return nil, nil
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		u := proxies[address]
		if u == nil {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		c, err := throughProxy(ctx, u, address)
		if err != nil {
			return nil, fmt.Errorf("through the proxy %s: %w", u.Redacted(), err)
		}
		return c, nil
	}, nil
}

// throughProxy connects to the address. What it returns is the connection to the proxy itself, which the event loop
// drives as any other.
func throughProxy(ctx context.Context, u *url.URL, address string) (net.Conn, error) {
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		port = "1080"
	}
	if u.Port() != "" {
		port = u.Port()
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	tunnel := c
	if u.Scheme == "http" || u.Scheme == "https" {
		tunnel, err = connect(ctx, c, u, address)
	} else {
		err = socks(ctx, c, u, address)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return tunnel, nil
}

// connect asks an HTTP proxy for a tunnel (rfc9110#section-9.3.6).
func connect(ctx context.Context, c net.Conn, u *url.URL, address string) (net.Conn, error) {
	if u.Scheme == "https" {
		t := tls.Client(c, &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = t
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n", address)
	if password, ok := u.User.Password(); ok {
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	b.WriteString("\r\n")
	if _, err := c.Write(b.Bytes()); err != nil {
		return nil, err
	}
	// Byte by byte: what follows the answer belongs to the tunnel.
	head := make([]byte, 0, 512)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) == maxProxyAnswer {
			return nil, errors.New("its answer is too long")
		}
		head = head[:len(head)+1]
		if _, err := io.ReadFull(c, head[len(head)-1:]); err != nil {
			return nil, err
		}
		if len(head) == cap(head) {
			head = append(head, 0)[:len(head)]
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("it answers %s", resp.Status)
	}
	return c, nil
}

// socks asks a SOCKS5 proxy for a tunnel (rfc1928), which looks the name up.
func socks(ctx context.Context, c net.Conn, u *url.URL, address string) error {
	var user *proxy.Auth
	if u.User != nil {
		password, _ := u.User.Password()
		user = &proxy.Auth{User: u.User.Username(), Password: password}
	}
	d, err := proxy.SOCKS5("tcp", u.Host, user, given{c})
	if err != nil {
		return err
	}
	_, err = d.(proxy.ContextDialer).DialContext(ctx, "tcp", address)
	return err
}

// given is a dialer that returns a connection which is there already.
type given struct{ c net.Conn }

func (g given) Dial(string, string) (net.Conn, error) { return g.c, nil }
func (g given) DialContext(context.Context, string, string) (net.Conn, error) {
	return g.c, nil
}
