package diag

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/rest"
)

const (
	maxRedirects = 5
	maxProbed    = 1 << 20 // bytes of a body that are read, and counted
	maxFields    = 64
	maxField     = 512 // bytes of a field's value
)

// Probe is a URL that is asked for.
type Probe struct {
	URL       string  `json:"url" doc:"http:// or https://" min:"8" max:"2000"`
	Method    string  `json:"method,omitempty" default:"GET" enum:"GET,HEAD"`
	Host      string  `json:"host,omitempty" doc:"the Host to ask for, if it is not that of the URL" max:"253"`
	Redirects int     `json:"redirects,omitempty" doc:"how many are followed; the default is none" min:"0" max:"5"`
	Timeout   float64 `json:"timeout_s" default:"10" min:"0.1" max:"20" doc:"for all of it"`
}

// Probed is what came of it. Times are from the beginning of the last request; one that is missing was not reached, or took
// place before on the same connection.
type Probed struct {
	URL       string  `json:"url"` // that was asked last
	OK        bool    `json:"ok"`  // there is an answer, whatever it says
	Status    int     `json:"status,omitempty"`
	Proto     string  `json:"proto,omitempty"`
	Address   string  `json:"address,omitempty"`
	Lookup    float64 `json:"lookup_ms,omitempty"`
	Connect   float64 `json:"connect_ms,omitempty"`
	TLS       float64 `json:"tls_ms,omitempty"`
	FirstByte float64 `json:"first_byte_ms,omitempty"` // of the answer
	Total     float64 `json:"total_ms"`                // to the end of the body

	Header     []Field  `json:"header,omitempty"`
	Size       int64    `json:"size"`                // bytes of the body that have come
	Truncated  bool     `json:"truncated,omitempty"` // there were more, which were not read
	Redirected []string `json:"redirected,omitempty"`
	TLSVersion string   `json:"tls_version,omitempty"`
	Class      string   `json:"class,omitempty"` // see Connection
	Problem    string   `json:"problem,omitempty"`
}

// Field is one of a head.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (s *Site) probe(ctx context.Context, in Probe) (Probed, error) {
	p := Probed{URL: in.URL}
	u, err := probeURL(in.URL)
	if err != nil {
		return p, err
	}
	if in.Host != "" && strings.ContainsFunc(in.Host, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return p, badRequest("host %q is none", clip(in.Host))
	}
	ctx, cancel := context.WithTimeout(ctx, seconds(in.Timeout))
	defer cancel()
	for {
		next, err := s.probeOnce(ctx, &p, u, in)
		if err != nil {
			return p, err
		}
		if next == "" || in.Redirects == len(p.Redirected) {
			return p, nil
		}
		to, err := u.Parse(next)
		if err == nil {
			to, err = probeURL(to.String())
		}
		if err != nil {
			p.Class, p.Problem = classOther, "redirects to what is no URL of HTTP"
			return p, nil
		}
		p = Probed{URL: to.String(), Redirected: append(p.Redirected, to.String())}
		u, in.Host = to, ""
	}
}

// probeURL reads a URL that can be asked for.
func probeURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, badRequest("url %q: want http://HOST/ or https://HOST/", clip(text))
	case u.User != nil:
		return nil, badRequest("the url has a user, and passwords are not for this")
	}
	u.Fragment = ""
	return u, nil
}

// probeOnce asks once. It returns where the answer redirects to, or "". Only refusals to ask at all are errors.
func (s *Site) probeOnce(ctx context.Context, p *Probed, u *url.URL, in Probe) (next string, err error) {
	port := uint16(80)
	if u.Scheme == "https" {
		port = 443
	}
	if t := u.Port(); t != "" {
		n, err := strconv.ParseUint(t, 10, 16)
		if err != nil || n == 0 {
			return "", badRequest("url %q: port %q", clip(u.String()), t)
		}
		port = uint16(n)
	}
	var list []netip.Addr
	start := time.Now()
	list, err = s.resolve(ctx, u.Hostname(), port)
	if _, ok := errors.AsType[*rest.Error](err); ok {
		if len(p.Redirected) == 0 {
			return "", err
		}
		p.Class, p.Problem = classify(err)
		return "", nil
	}
	if err != nil {
		p.Class, p.Problem = classify(err)
		p.Total = ms(time.Since(start))
		return "", nil
	}
	var mu sync.Mutex // the transport's goroutines may be late
	since := func(at *float64) {
		mu.Lock()
		defer mu.Unlock()
		if *at == 0 {
			*at = ms(time.Since(start))
		}
	}
	var times struct{ lookup, connect, tls, first float64 }
	since(&times.lookup)
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, _, err := dialFirst(ctx, list, port)
			if err == nil {
				since(&times.connect)
			}
			return c, err
		},
		TLSClientConfig:        &tls.Config{RootCAs: s.rootsOf(u.Hostname(), port)},
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
	}
	defer t.CloseIdleConnections()
	trace := &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if err == nil {
				since(&times.tls)
			}
		},
		GotFirstResponseByte: func() { since(&times.first) },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), in.Method, u.String(), nil)
	if err != nil {
		return "", badRequest("url %q cannot be asked for", clip(u.String()))
	}
	req.Header.Set("User-Agent", "culvert-diagnostics")
	req.Host = either(in.Host, req.Host)
	res, err := t.RoundTrip(req)
	done := func() {
		mu.Lock()
		p.Lookup, p.Connect, p.TLS, p.FirstByte = times.lookup, times.connect, times.tls, times.first
		mu.Unlock()
		p.Total = ms(time.Since(start))
	}
	if err != nil {
		done()
		p.Class, p.Problem = classify(err)
		return "", nil
	}
	n, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxProbed))
	if err == nil && n == maxProbed {
		m, _ := res.Body.Read(make([]byte, 1))
		p.Truncated = m > 0
	}
	res.Body.Close()
	done()
	p.OK, p.Status, p.Proto, p.Size = true, res.StatusCode, res.Proto, n
	if err != nil {
		p.Class, _ = classify(err)
		p.Problem = "the body breaks off after " + strconv.FormatInt(n, 10) + " bytes"
	}
	if res.TLS != nil {
		p.TLSVersion = tls.VersionName(res.TLS.Version)
	}
	if len(list) == 1 {
		p.Address = netip.AddrPortFrom(list[0], port).String()
	}
	p.Header = fields(res.Header)
	if location := res.Header.Get("Location"); res.StatusCode >= 300 && res.StatusCode < 400 {
		return location, nil
	}
	return "", nil
}

// fields are those of a head, without cookies.
func fields(h http.Header) (list []Field) {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range h[name] {
			if len(list) == maxFields {
				return list
			}
			if name == "Set-Cookie" {
				v, _, _ = strings.Cut(v, "=")
				v += "=…"
			}
			list = append(list, Field{clipTo(printable(name), 100), clipTo(printable(v), maxField)})
		}
	}
	return list
}
