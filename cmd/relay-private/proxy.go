package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxProxyAnswer bounds what a proxy may say before the tunnel begins, maxProxyLogin the user and the password that
// SOCKS5 has room for (rfc1929).
const (
	maxProxyAnswer = 8 << 10
	maxProxyLogin  = 255
)

// proxyPorts are the ports that proxies of each scheme have when the URL names none. socks5h is curl's name for what
// socks5 is here: the proxy looks the relay's name up.
var proxyPorts = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}

// proxyFinder returns the proxy to a host:port, or nil.
type proxyFinder func(address string) (*url.URL, error)

// newProxyFinder finds what the configuration says: a URL; "none"; or, with "", what the environment does.
func newProxyFinder(configured string, environment proxyFinder) (proxyFinder, error) {
	switch configured {
	case "":
		return environment, nil
	case "none":
		return func(string) (*url.URL, error) { return nil, nil }, nil
	}
	u, err := parseProxy(configured)
	if err != nil {
		return nil, err
	}
	return func(string) (*url.URL, error) { return u, nil }, nil
}

// parseProxy checks the URL of a proxy. The error does not repeat it: it may have a password.
func parseProxy(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || proxyPorts[u.Scheme] == "" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want http://, https:// or socks5://, with USER:PASSWORD@ if need be, then HOST:PORT; or \"none\" (in a password, @ is written %40, : %3A, / %2F and # %23)")
	}
	if user, password := login(u.User); u.User != nil && (user == "" || len(user) > maxProxyLogin || len(password) > maxProxyLogin || strings.Contains(user, ":")) {
		return nil, fmt.Errorf("want a user without a colon, and a password, of at most %d bytes each", maxProxyLogin)
	}
	return u, nil
}

// environmentProxy finds the proxies of HTTPS_PROXY, or else ALL_PROXY, and NO_PROXY, in either case.
func environmentProxy(address string) (*url.URL, error) {
	// net/http reads the environment once, and does not know ALL_PROXY.
	if os.Getenv("HTTPS_PROXY") == "" && os.Getenv("https_proxy") == "" {
		os.Setenv("HTTPS_PROXY", cmp.Or(os.Getenv("ALL_PROXY"), os.Getenv("all_proxy")))
	}
	u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err == nil && u != nil {
		u, err = parseProxy(u.String())
	}
	if err != nil { // which may repeat the password
		return nil, errors.New("HTTPS_PROXY or ALL_PROXY in the environment is not the URL of a proxy: want http://, https:// or socks5://, then HOST:PORT; proxy = \"none\" ignores it")
	}
	return u, nil
}

// outbound is how the public relays are reached.
type outbound struct {
	proxies map[string]*url.URL // by the relay's host:port; those that need none are missing
}

func newOutbound(relays []string, find proxyFinder) (*outbound, error) {
	o := &outbound{proxies: make(map[string]*url.URL)}
	for _, address := range relays {
		u, err := find(address)
		if err != nil {
			return nil, err
		}
		if u != nil {
			o.proxies[address] = u
		}
	}
	return o, nil
}

// proxied reports whether a relay is reached through a proxy.
func (o *outbound) proxied(address string) bool { return o.proxies[address] != nil }

// equal reports whether both lead the same way out.
func (o *outbound) equal(b *outbound) bool {
	return maps.EqualFunc(o.proxies, b.proxies, func(x, y *url.URL) bool { return x.String() == y.String() })
}

// shown is the URL of a proxy without user and password.
func shown(u *url.URL) string { return u.Scheme + "://" + u.Host }

// dialer is what dials the relays, or nil when the event loop may do it by itself.
func (o *outbound) dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	if len(o.proxies) == 0 {
		return nil
	}
	return o.dial
}

// dial connects to a relay. What it returns is the connection to the proxy itself, which the event loop drives as any
// other.
func (o *outbound) dial(ctx context.Context, network, address string) (net.Conn, error) {
	u := o.proxies[address]
	if u == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	c, err := throughProxy(ctx, u, address)
	if err != nil {
		return nil, fmt.Errorf("through the proxy %s: %w", shown(u), err)
	}
	return c, nil
}

// throughProxy connects to the address, in the time that ctx has.
func throughProxy(ctx context.Context, u *url.URL, address string) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = proxyPorts[u.Scheme]
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("it is not reached: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	tunnel := c
	switch u.Scheme {
	case "https":
		t := tls.Client(c, &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}})
		if err = t.HandshakeContext(ctx); err == nil {
			tunnel, err = t, connect(t, u.User, address)
		}
	case "http":
		err = connect(c, u.User, address)
	default:
		err = throughSocks(c, u.User, address)
	}
	switch {
	case !stop():
		err = ctx.Err()
	case err == io.EOF, err == io.ErrUnexpectedEOF, errors.Is(err, syscall.ECONNRESET):
		err = errors.New("it closes the connection without an answer: are scheme and port right?")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return tunnel, nil
}

// login is the user and the password of a proxy's URL.
func login(u *url.Userinfo) (user, password string) {
	password, _ = u.Password()
	return u.Username(), password
}

// connect asks an HTTP proxy for a tunnel (rfc9110#section-9.3.6).
func connect(c io.ReadWriter, user *url.Userinfo, address string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n", address)
	if user != nil {
		name, password := login(user)
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(name+":"+password)))
	}
	b.WriteString("\r\n")
	if _, err := c.Write(b.Bytes()); err != nil {
		return err
	}
	// Byte by byte: what follows the answer belongs to the tunnel.
	head := make([]byte, 0, 512)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) == maxProxyAnswer {
			return errors.New("its answer is too long: is it an HTTP proxy?")
		}
		head = append(head, 0)
		if _, err := io.ReadFull(c, head[len(head)-1:]); err != nil {
			return err
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return errors.New("its answer is not HTTP: is it an HTTP proxy?")
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("it answers %q%s", resp.Status, proxyAdvice(resp, user != nil))
	}
	return nil
}

// proxyAdvice is what to do about the answer of an HTTP proxy.
func proxyAdvice(resp *http.Response, known bool) string {
	basic := false
	schemes := resp.Header.Values("Proxy-Authenticate")
	for _, s := range schemes {
		scheme, _, _ := strings.Cut(s, " ")
		basic = basic || strings.EqualFold(scheme, "basic")
	}
	switch status := resp.StatusCode; {
	case status == http.StatusProxyAuthRequired && len(schemes) > 0 && !basic:
		return ": it wants another authentication than Basic, which is not supported"
	case status == http.StatusProxyAuthRequired && known, status == http.StatusUnauthorized && known:
		return ": it does not take the user and the password of proxy"
	case status == http.StatusProxyAuthRequired, status == http.StatusUnauthorized:
		return ": it asks for a user and a password: put them into proxy, as in \"http://USER:PASSWORD@HOST:PORT\""
	case status == http.StatusForbidden, status == http.StatusMethodNotAllowed:
		return ": it does not allow CONNECT to the relay: whoever runs it has to"
	case status/100 == 5:
		return ": it does not reach the relay"
	}
	return ""
}

// socksReplies are what a SOCKS5 proxy can answer (rfc1928#section-6).
var socksReplies = [...]string{
	1: "it has failed",
	2: "it does not allow connections to the relay: whoever runs it has to",
	3: "it does not reach the relay: network unreachable",
	4: "it does not reach the relay: host unreachable, or its name unknown",
	5: "it does not reach the relay: connection refused",
	6: "it does not reach the relay in time",
	7: "it does not make connections",
	8: "it does not take this kind of address",
}

// throughSocks asks a SOCKS5 proxy for a tunnel (rfc1928), by the relay's name, which the proxy looks up.
func throughSocks(c io.ReadWriter, user *url.Userinfo, address string) error {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || len(host) > 255 {
		return fmt.Errorf("SOCKS5 cannot be asked for %q", address)
	}
	const none, password, noMethod = 0, 2, 0xff
	hello := []byte{5, 1, none}
	if user != nil {
		hello = []byte{5, 2, none, password}
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(c, answer[:2]); err != nil {
		return err
	}
	switch method := answer[1]; {
	case answer[0] != 5:
		return errors.New("its answer is not SOCKS5: is it a SOCKS5 proxy?")
	case method == password && user != nil:
		if err := socksLogin(c, user); err != nil {
			return err
		}
	case method == noMethod && user == nil:
		return errors.New("it asks for a user and a password: put them into proxy, as in \"socks5://USER:PASSWORD@HOST:PORT\"")
	case method != none:
		return errors.New("it wants another authentication than a user and a password, which is not supported")
	}

	request := []byte{5, 1, 0}
	if ip, err := netip.ParseAddr(host); err != nil {
		request = append(append(request, 3, byte(len(host))), host...)
	} else if ip = ip.Unmap(); ip.Is4() {
		request = append(append(request, 1), ip.AsSlice()...)
	} else {
		request = append(append(request, 4), ip.AsSlice()...)
	}
	if _, err := c.Write(binary.BigEndian.AppendUint16(request, uint16(port))); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, answer[:4]); err != nil {
		return err
	}
	switch reply := int(answer[1]); {
	case answer[0] != 5:
		return errors.New("its answer is not SOCKS5: is it a SOCKS5 proxy?")
	case reply > 0 && reply < len(socksReplies):
		return errors.New(socksReplies[reply])
	case reply != 0:
		return fmt.Errorf("it answers with the unknown code %d", reply)
	}
	// Its own address, which nobody needs.
	n := 0
	switch answer[3] {
	case 1:
		n = 4
	case 4:
		n = 16
	case 3:
		if _, err := io.ReadFull(c, answer[:1]); err != nil {
			return err
		}
		n = int(answer[0])
	default:
		return errors.New("its answer is not SOCKS5: is it a SOCKS5 proxy?")
	}
	_, err = io.CopyN(io.Discard, c, int64(n)+2)
	return err
}

// socksLogin says who we are (rfc1929).
func socksLogin(c io.ReadWriter, user *url.Userinfo) error {
	name, password := login(user)
	b := append([]byte{1, byte(len(name))}, name...)
	b = append(append(b, byte(len(password))), password...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if answer[1] != 0 {
		return errors.New("it does not take the user and the password of proxy")
	}
	return nil
}
