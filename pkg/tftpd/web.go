package tftpd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Web is a Store of what a web server has below a URL. Nothing can be written. Each request has a goroutine, which stands still with its
// reader. One Web may be used on any number of loops. Its fields are set before.
type Web struct {
	// URL is what names are put behind: "https://10.0.0.8/images". It has no query.
	URL string

	// RootCAs are who may have signed the certificate of an https server. nil: those of the system.
	RootCAs *x509.CertPool

	// MaxRequests bounds the requests at a time, readers that stand still included. 0: 256.
	MaxRequests int

	once    sync.Once
	base    *url.URL
	err     error // of URL
	client  *http.Client
	running atomic.Int32
}

const (
	webRequests  = 256
	webChunk     = 64 << 10 // bytes of a body that are read at a time
	webRedirects = 5
	webDial      = 10 * time.Second // also for TLS, by itself
	webHeader    = 20 * time.Second
	webStall     = time.Minute // until there is a response, or more of it
	webIdle      = 30 * time.Second
	webOld       = 2 * time.Second // age of a Last-Modified that tells contents apart (rfc9110#section-8.8.2.2)
)

var (
	errFolder    = errors.New("it is a folder")
	errElsewhere = errors.New("redirected to another server: write that one into the target")
	errRedirects = errors.New("redirected too often")
	errStalled   = errors.New("the server has sent nothing for a minute")
)

// open readies w for its first request.
func (w *Web) open() {
	w.base, w.err = url.Parse(w.URL)
	switch {
	case w.err != nil:
		return
	case w.base.Scheme != "http" && w.base.Scheme != "https" || w.base.Host == "" || w.base.RawQuery != "" || w.base.Fragment != "":
		w.err = fmt.Errorf("%q is not the URL of a folder on a web server", w.URL)
		return
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // HTTP/2 would take in megabytes for a reader that stands still
	w.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: webDial}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: w.RootCAs},
			TLSHandshakeTimeout:    webDial,
			ResponseHeaderTimeout:  webHeader,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        webIdle,
			Protocols:              &protocols,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			from := via[len(via)-1].URL
			switch {
			case r.URL.Scheme != w.base.Scheme || !strings.EqualFold(hostPort(r.URL), hostPort(w.base)) || r.URL.User != nil && w.base.User == nil:
				return errElsewhere
			case r.URL.Path == from.Path+"/":
				return errFolder
			case len(via) > webRedirects:
				return errRedirects
			}
			return nil
		},
	}
}

// hostPort is what a URL has its client dial.
func hostPort(u *url.URL) string {
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))
}

// Close ends connections that are kept for the next request. Those of requests under way end with them.
func (w *Web) Close() {
	w.once.Do(w.open)
	if w.client != nil {
		w.client.CloseIdleConnections()
	}
}

// Open asks for a file.
func (w *Web) Open(l *evloop.Loop, r *Open, done func(*File, error)) (cancel func()) {
	w.once.Do(w.open)
	most := int32(w.MaxRequests)
	if most <= 0 {
		most = webRequests
	}
	name, err := tftp.CleanName(r.Name)
	switch {
	case err != nil:
	case r.Write || name != r.Name:
		err = errAccess
	case w.err != nil:
		err = w.err
	case w.running.Add(1) > most:
		w.running.Add(-1)
		err = errTooMany
	}
	if err != nil {
		done(nil, err)
		return nil
	}
	g := &webGet{web: w, ask: r, done: done, next: make(chan struct{}, 1)}
	g.ctx, g.stop = context.WithCancelCause(context.Background())
	g.feed = feed{
		loop: l,
		more: func() { g.next <- struct{}{} },
		free: func() { g.stop(evloop.ErrClosed) },
	}
	l.Spawn(g.run)
	return func() {
		g.done = nil
		g.stop(evloop.ErrClosed)
	}
}

// webGet is one request, and the End of its body.
type webGet struct {
	feed
	web  *Web
	ask  *Open
	done func(*File, error) // of the loop; nil when it was called, or nobody waits any more
	next chan struct{}      // asks for a piece, which is answered before the next one is asked for
	ctx  context.Context    // ends when nobody wants the rest
	stop context.CancelCauseFunc
}

// run does the request, until stop is called.
func (g *webGet) run(core context.Context) {
	defer g.web.running.Add(-1)
	defer g.stop(nil)
	defer context.AfterFunc(core, func() { g.stop(evloop.ErrClosed) })()
	stall := time.AfterFunc(webStall, func() { g.stop(errStalled) })
	defer stall.Stop()

	body, file, err := g.request()
	if body != nil {
		defer body.Close()
	}
	g.loop.Post(func() {
		if done := g.done; done != nil {
			g.done = nil
			done(file, err)
		}
	})
	if body == nil {
		return
	}
	var bufs [2][]byte // one to read into while the other one is being presented
	var text tftp.EncodeNetASCII
	for turn := 0; ; turn ^= 1 {
		stall.Stop()
		select {
		case <-g.next:
		case <-g.ctx.Done():
			return
		}
		stall.Reset(webStall)
		if bufs[turn] == nil {
			bufs[turn] = make([]byte, webChunk)
		}
		n, err := body.Read(bufs[turn])
		b := bufs[turn][:n]
		if g.ask.Mode == tftp.NetASCII {
			b = text.Append(nil, b)
		}
		if err != nil && err != io.EOF {
			err = g.blame(err)
			g.loop.Post(func() { g.fail(err) })
			return
		}
		g.loop.Post(func() { g.put(b, err == io.EOF) })
		if err != nil {
			return
		}
	}
}

// request asks for the file. There is a body if it is to be read.
func (g *webGet) request() (body io.ReadCloser, file *File, err error) {
	req, err := http.NewRequestWithContext(g.ctx, http.MethodGet, "", nil)
	if err != nil {
		return nil, nil, err
	}
	req.URL = g.url()
	req.Header.Set("User-Agent", "Culvert")
	req.Header.Set("Accept-Encoding", "identity")
	have := g.ask.Have
	switch kind, rest, _ := strings.Cut(have, ":"); kind {
	case "tag":
		if isStrong(rest) {
			req.Header.Set("If-None-Match", rest)
		}
	case "time":
		seconds, _, _ := strings.Cut(rest, "-")
		if unix, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			req.Header.Set("If-Modified-Since", time.Unix(unix, 0).UTC().Format(http.TimeFormat))
		}
	}
	res, err := g.web.client.Do(req)
	if err != nil {
		if errors.Is(err, errFolder) {
			return nil, nil, errAccess
		}
		return nil, nil, g.blame(err)
	}
	file = &File{End: g, Size: -1, Version: webVersion(res)}
	encoding := res.Header.Get("Content-Encoding")
	switch {
	case res.StatusCode == http.StatusNotModified && have != "":
		file.Version = have
	case res.StatusCode != http.StatusOK:
		err = webStatus(res.StatusCode)
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		err = fmt.Errorf("it comes with content coding %q, which nobody has asked for", encoding)
	}
	if g.ask.Mode == tftp.Octet {
		file.Size = res.ContentLength
	}
	switch {
	case err != nil:
		discard(res.Body)
		return nil, nil, g.blame(err)
	case have != "" && file.Version == have:
		discard(res.Body)
		return nil, &File{Size: -1, Version: have, Same: true}, nil
	}
	return res.Body, file, nil
}

// discard reads the rest of a body if it is short, so that the connection serves again.
func discard(body io.ReadCloser) {
	io.CopyN(io.Discard, body, 4<<10)
	body.Close()
}

// url puts the name behind the URL. Whatever is in it is of the name.
func (g *webGet) url() *url.URL {
	u := *g.web.base
	elements := strings.Split(g.ask.Name, "/")
	for i, e := range elements {
		elements[i] = url.PathEscape(e)
	}
	u.RawPath = strings.TrimSuffix(u.EscapedPath(), "/") + "/" + strings.Join(elements, "/")
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + g.ask.Name
	return &u
}

// blame says for our log which URL is in trouble. What is for the client remains as it is.
func (g *webGet) blame(err error) error {
	if _, ok := errors.AsType[*tftp.Error](err); ok {
		return err
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if g.ctx.Err() != nil {
		err = context.Cause(g.ctx)
	}
	return fmt.Errorf("%s: %w", g.url().Redacted(), err)
}

// webStatus is what a status other than 200 means to a client.
func webStatus(status int) error {
	switch status {
	case http.StatusNotFound, http.StatusGone, http.StatusRequestURITooLong:
		return errNotFound
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return errAccess
	}
	return fmt.Errorf("the server answers with status %d (%s)", status, http.StatusText(status))
}

// webVersion tells contents apart, by what the server says does so: an ETag that is not weak, or a time at which the content cannot
// have changed twice.
func webVersion(res *http.Response) string {
	tag := res.Header.Get("ETag")
	if v := "tag:" + tag; isStrong(tag) && len(v) <= MaxVersion {
		return v
	}
	modified, err := http.ParseTime(res.Header.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	now, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	if now.Sub(modified) < webOld {
		return ""
	}
	return fmt.Sprintf("time:%d-%d", modified.Unix(), res.ContentLength)
}

// isStrong reports whether an ETag stands for one content, byte by byte. One in other characters than those of ASCII is left alone.
func isStrong(tag string) bool {
	return len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' && !strings.ContainsFunc(tag[1:len(tag)-1], func(r rune) bool { return r <= ' ' || r > '~' || r == '"' })
}
