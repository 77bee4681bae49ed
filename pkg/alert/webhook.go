package alert

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// SignatureField is the field of a request by a Webhook that proves who has sent it: "t=SECONDS,v1=HEX", where HEX is the
// HMAC-SHA256, with the secret, of SECONDS, a full stop and the body. SECONDS is the time, so that a receiver can refuse what is old.
const SignatureField = "Culvert-Signature"

const (
	webhookTime  = 10 * time.Second
	maxRedirects = 3
	maxAnswer    = 64 << 10 // of the answer that are read, to use the connection again
)

// Webhook posts messages as JSON.
type Webhook struct {
	URL    *url.URL
	Secret []byte            // signs requests; nil: they are not signed
	Roots  *x509.CertPool    // nil: those of the system
	Header map[string]string // further fields, such as Authorization
}

// CheckWebhook returns what is wrong with the URL of a Webhook: to anywhere but this machine it has to be https.
func CheckWebhook(u *url.URL) error {
	switch {
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is no URL of a web server, such as https://hooks.example.com/culvert", u.Redacted())
	case u.Scheme == "http" && !local(u.Hostname()):
		return fmt.Errorf("%q goes over the network in the clear: use https", u.Redacted())
	case u.User != nil:
		return errors.New("a webhook has no user and password in its URL: it signs what it sends, if it has a secret")
	case u.Fragment != "":
		return fmt.Errorf("%q has a fragment, which is not sent", u.Redacted())
	}
	return nil
}

// local reports whether host is this machine.
func local(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.IsLoopback()
}

// String implements Sender. The path and the query of many webhooks are secret.
func (w *Webhook) String() string {
	sum := sha256.Sum256([]byte(w.URL.String()))
	return "webhook " + w.URL.Scheme + "://" + w.URL.Host + "/… (" + hex.EncodeToString(sum[:3]) + ")"
}

// Send implements Sender.
func (w *Webhook) Send(ctx context.Context, m *Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, webhookTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL.String(), bytes.NewReader(body))
	if err != nil {
		return plain(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "culvert")
	if w.Secret != nil {
		req.Header.Set(SignatureField, Sign(w.Secret, m.Time, body))
	}
	for name, value := range w.Header {
		req.Header.Set(name, value)
	}
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: w.Roots, MinVersion: tls.VersionTLS12},
		DialContext:       (&net.Dialer{Timeout: webhookTime}).DialContext,
		DisableKeepAlives: true, // the next message may be months away
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		switch {
		case to.URL.Scheme != w.URL.Scheme || to.URL.Host != w.URL.Host:
			return fmt.Errorf("the server redirects to %s://%s: name that in the configuration, if it is right", to.URL.Scheme, to.URL.Host)
		case to.Method != http.MethodPost:
			return errors.New("the server redirects in a way that loses the message (use 307 or 308)")
		case len(via) > maxRedirects:
			return errors.New("too many redirects")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the server answers %s", strconv.Quote(resp.Status))
	}
	return nil
}

// plain is err without the URL, whose path may be secret.
func plain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// Sign returns the value of SignatureField.
func Sign(secret []byte, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(t + "."))
	h.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(h.Sum(nil))
}
