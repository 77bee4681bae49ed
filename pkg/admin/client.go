package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client asks a relay's admin API. Its methods may be called from several goroutines.
type Client struct {
	// Base is where the relay is: http://127.0.0.1:7070, or https:// and the relay's own domain.
	Base *url.URL

	// Token is the operators' token.
	Token string

	// TLS is used for an https Base. nil: the system's roots.
	TLS *tls.Config

	// Dial replaces the network. nil: net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Status returns the relay's state now.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s := new(Status)
	return s, c.do(ctx, http.MethodGet, "/api/status", nil, s)
}

// AddSite asks for a join token.
func (c *Client) AddSite(ctx context.Context, in Invite) (*Invitation, error) {
	inv := new(Invitation)
	return inv, c.do(ctx, http.MethodPost, "/api/sites", in, inv)
}

// RevokeSite makes the relay forget a key of a site, or all of them if key is "", and cut
// their sessions.
func (c *Client) RevokeSite(ctx context.Context, name, key string) error {
	path := "/api/sites/" + url.PathEscape(name)
	if key != "" {
		path += "?key=" + url.QueryEscape(key)
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}

// PromoteSite has a stand-by of a site take over.
func (c *Client) PromoteSite(ctx context.Context, name string, p Promote) (*Promoted, error) {
	done := new(Promoted)
	return done, c.do(ctx, http.MethodPost, "/api/sites/"+url.PathEscape(name)+"/promote", p, done)
}

// Cameras has a site look for cameras.
func (c *Client) Cameras(ctx context.Context, site string, in Search) (*Cameras, error) {
	found := new(Cameras)
	return found, c.do(ctx, http.MethodPost, "/api/sites/"+url.PathEscape(site)+"/cameras", in, found)
}

// RenewCertificate has another certificate ordered for a name.
func (c *Client) RenewCertificate(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, "/api/certificates/"+url.PathEscape(name)+"/renew", nil, nil)
}

// Conn is a connection to a service through the relay. Closing one direction leaves the other.
type Conn struct {
	net.Conn
	r *bufio.Reader // what follows the answer's header may already be in here
}

func (s *Conn) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite tells the service that no more data comes.
func (s *Conn) CloseWrite() error { return s.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// Abort ends both directions at once, so that the service does not take what it has got for all.
func (s *Conn) Abort() {
	conn := s.Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn() // without close_notify
	}
	if t, ok := conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	conn.Close()
}

// Upgrade is the protocol a forward request upgrades to: the raw bytes of the stream.
const Upgrade = "culvert-forward"

// forwardTimeout bounds dialling, handshake and the relay's answer, which does not wait for the target.
const forwardTimeout = 30 * time.Second

// Forward opens a stream to a service of a site.
func (c *Client) Forward(ctx context.Context, site, service string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	s, err := c.upgrade(conn, ForwardPath+url.PathEscape(site)+"/"+url.PathEscape(service))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer from %s: %w", c.Base.Host, ctx.Err())
		}
		return nil, err
	}
	return s, nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	addr := c.Base.Host
	if c.Base.Port() == "" {
		addr = net.JoinHostPort(c.Base.Hostname(), map[string]string{"http": "80", "https": "443"}[c.Base.Scheme])
	}
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	conn, err := dial(ctx, "tcp", addr)
	if err != nil || c.Base.Scheme == "http" {
		return conn, err
	}
	cfg := &tls.Config{}
	if c.TLS != nil {
		cfg = c.TLS.Clone()
	}
	cfg.NextProtos = []string{"http/1.1"} // an upgrade needs HTTP/1.1
	if cfg.ServerName == "" {
		cfg.ServerName = c.Base.Hostname()
	}
	tc := tls.Client(conn, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

func (c *Client) upgrade(conn net.Conn, path string) (*Conn, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		path, c.Base.Host, c.Token, Upgrade)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s closed the connection without an answer", c.Base.Host)
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, c.refusal(resp)
	}
	return &Conn{conn, r}, nil
}

// do sends one request and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	path, query, _ := strings.Cut(path, "?")
	u := c.Base.JoinPath(path)
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// One request each run of tunnelctl: a kept connection would only have to be closed again. No
	// proxy: the token goes to the relay and to nobody else.
	t := &http.Transport{TLSClientConfig: c.TLS, DialContext: c.Dial, DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.refusal(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(out); err != nil {
		return fmt.Errorf("answer of %s: %w", c.Base.Host, err)
	}
	return nil
}

// refusal makes an *Error of an answer that is not a success. A relay answers API requests in JSON
// and others with a line of text.
func (c *Client) refusal(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	e := &Error{Code: resp.StatusCode}
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(b))
	}
	if e.Message == "" || strings.HasPrefix(e.Message, "<") {
		e.Message = resp.Status
	}
	return e
}
