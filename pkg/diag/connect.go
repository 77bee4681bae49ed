package diag

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"culvert.dev/pkg/rest"
)

const (
	minDial  = 500 * time.Millisecond
	maxCerts = 10
	maxNames = 100
	maxValue = 1024 // bytes of a text of others
)

// Classes of what can be wrong with a connection.
const (
	classRefused     = "refused"
	classTimeout     = "timeout"
	classUnreachable = "unreachable"
	classReset       = "reset"
	classNoName      = "no such name"
	classDNS         = "dns"
	classTLS         = "tls"
	classCertificate = "certificate"
	classForbidden   = "forbidden"
	classOther       = "other"
)

// Connect is a target that is to be reached.
type Connect struct {
	Target  string  `json:"target" doc:"HOST:PORT" min:"1" max:"300"`
	Timeout float64 `json:"timeout_s" default:"5" min:"0.1" max:"20" doc:"for the look-up of the name and the connection"`
}

// Connection tells whether it was.
type Connection struct {
	Target  string  `json:"target"`
	OK      bool    `json:"ok"`
	Address string  `json:"address,omitempty"`    // that has answered
	Lookup  float64 `json:"lookup_ms"`            // of the name
	Connect float64 `json:"connect_ms,omitempty"` // SYN to SYN-ACK
	Class   string  `json:"class,omitempty"`      // refused, timeout, unreachable, reset, "no such name", dns, tls, certificate, forbidden or other
	Problem string  `json:"problem,omitempty"`
}

func (s *Site) connect(ctx context.Context, in Connect) (Connection, error) {
	c, conn, err := s.reach(ctx, in.Target, 0, seconds(in.Timeout))
	if conn != nil {
		conn.Close()
	}
	return c, err
}

// reach dials a target. It returns an error if nobody may be asked, and otherwise says what went wrong.
func (s *Site) reach(ctx context.Context, target string, port uint16, timeout time.Duration) (Connection, net.Conn, error) {
	c := Connection{Target: target}
	host, port, err := splitTarget(target, port)
	if err != nil {
		return c, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	list, err := s.resolve(ctx, host, port)
	if _, ok := errors.AsType[*rest.Error](err); ok {
		return c, nil, err
	}
	c.Lookup = ms(time.Since(start))
	if err != nil {
		c.Class, c.Problem = classify(err)
		return c, nil, nil
	}
	conn, took, err := dialFirst(ctx, list, port)
	if err != nil {
		c.Class, c.Problem = classify(err)
		return c, nil, nil
	}
	c.OK, c.Address, c.Connect = true, conn.RemoteAddr().String(), ms(took)
	return c, conn, nil
}

// dialFirst dials the first address that answers.
func dialFirst(ctx context.Context, list []netip.Addr, port uint16) (net.Conn, time.Duration, error) {
	var first error
	for i, a := range list {
		var d net.Dialer
		if end, ok := ctx.Deadline(); ok && i < len(list)-1 { // one that is silent leaves time for the next
			d.Timeout = max(minDial, time.Until(end)/2)
		}
		start := time.Now()
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			return c, time.Since(start), nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, 0, first
}

// classify says what kind of failure err is, and what it is in words.
func classify(err error) (class, text string) {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	var netErr net.Error
	var refused *rest.Error
	var kiss KissError
	switch {
	case errors.As(err, &refused):
		return classForbidden, refused.Text
	case errors.As(err, &kiss):
		return classRefused, kiss.Error()
	case errors.As(err, &certificate):
		return classCertificate, printable(certificate.Err.Error())
	case errors.As(err, &record):
		return classTLS, "the server does not speak TLS here"
	case errors.As(err, &op) && op.Op == "remote error": // crypto/tls has no type for it
		return classTLS, "the server breaks the TLS handshake off: " + printable(op.Err.Error())
	case isNoName(err):
		return classNoName, "there is no such name"
	case isErrno(err, syscall.ECONNREFUSED, 10061):
		return classRefused, "refused: nothing listens there, or a firewall says no"
	case isErrno(err, syscall.ECONNRESET, 10054), errors.Is(err, syscall.EPIPE):
		return classReset, "reset by the server, or by what is on the way"
	case isErrno(err, syscall.EHOSTUNREACH, 10065), isErrno(err, syscall.ENETUNREACH, 10051), isErrno(err, syscall.EADDRNOTAVAIL, 10049):
		return classUnreachable, "unreachable: there is no way to that address, or its machine is off"
	case errors.As(err, new(*net.DNSError)):
		if errors.As(err, &netErr) && netErr.Timeout() {
			return classDNS, "the name servers do not answer"
		}
		return classDNS, printable(clipTo(err.Error(), maxValue))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return classTimeout, "no answer in time: the machine is off, or a firewall drops what comes"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return classReset, "closed by the server without an answer"
	}
	return classOther, printable(clipTo(err.Error(), maxValue))
}

// isErrno reports whether err is one of the system's: e, or the number that Windows has for it.
func isErrno(err error, e, windows syscall.Errno) bool {
	return errors.Is(err, e) || errors.Is(err, windows)
}

// Inspect is a server whose certificate is to be seen.
type Inspect struct {
	Target  string  `json:"target" doc:"HOST:PORT; the port is 443 if it is missing" min:"1" max:"300"`
	Name    string  `json:"server_name,omitempty" doc:"what the server is asked for (SNI), and what its certificate has to be for; the default is HOST" max:"253"`
	ALPN    string  `json:"alpn,omitempty" doc:"protocols to offer, with commas between; the default is none" max:"100"`
	Timeout float64 `json:"timeout_s" default:"10" min:"0.1" max:"20" doc:"for the connection, and again for the handshake"`
}

// Handshake is what a server shows in TLS.
type Handshake struct {
	Connection
	Took     float64       `json:"handshake_ms,omitempty"`
	Version  string        `json:"version,omitempty"`  // TLS 1.3
	Cipher   string        `json:"cipher,omitempty"`   // TLS_AES_128_GCM_SHA256
	Protocol string        `json:"protocol,omitempty"` // by ALPN
	Name     string        `json:"server_name,omitempty"`
	Verified bool          `json:"verified"`
	Reason   string        `json:"reason,omitempty"` // why it is not
	Left     float64       `json:"days_left"`        // of what ends first of the chain
	Chain    []Certificate `json:"chain,omitempty"`  // the leaf first
}

// Certificate is one of a chain.
type Certificate struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Names       []string  `json:"names,omitempty"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	CA          bool      `json:"ca,omitempty"`
	Key         string    `json:"key"`       // "ECDSA 256"
	Signature   string    `json:"signature"` // "ECDSA-SHA256"
	Fingerprint string    `json:"sha256"`
}

func (s *Site) inspect(ctx context.Context, in Inspect) (Handshake, error) {
	var h Handshake
	c, conn, err := s.reach(ctx, in.Target, 443, seconds(in.Timeout))
	h.Connection = c
	if err != nil || conn == nil {
		return h, err
	}
	defer conn.Close()
	host, port, _ := splitTarget(in.Target, 443)
	h.Name = strings.TrimSuffix(either(in.Name, host), ".")
	var protocols []string
	if in.ALPN != "" {
		protocols = strings.Split(in.ALPN, ",")
	}
	h.shake(ctx, conn, h.Name, protocols, s.rootsOf(host, port), seconds(in.Timeout))
	return h, nil
}

// shake does a handshake on conn. Nothing is sent in it: so the certificate is looked at first, and verified after.
func (h *Handshake) shake(ctx context.Context, conn net.Conn, name string, protocols []string, roots *x509.CertPool, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	sni := name
	if _, err := netip.ParseAddr(name); err == nil {
		sni = "" // rfc6066#section-3
	}
	start := time.Now()
	tc := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, // verify does it, and the connection is used for nothing else
		ServerName:         sni, NextProtos: protocols, MinVersion: tls.VersionTLS10,
		VerifyConnection: func(st tls.ConnectionState) error { // seen also if the server wants a certificate of ours, and breaks off
			h.see(st, name, roots, time.Now())
			return nil
		},
	})
	err := tc.HandshakeContext(ctx)
	h.Took = ms(time.Since(start))
	if err == nil {
		st := tc.ConnectionState()
		h.Version, h.Cipher, h.Protocol = tls.VersionName(st.Version), tls.CipherSuiteName(st.CipherSuite), printable(st.NegotiatedProtocol)
		return
	}
	h.OK = false
	h.Class, h.Problem = classify(err)
	if h.Reason == "" && !h.Verified {
		h.Reason = h.Problem
	}
}

// see writes down what the server has shown.
func (h *Handshake) see(st tls.ConnectionState, name string, roots *x509.CertPool, now time.Time) {
	h.Version, h.Cipher, h.Protocol = tls.VersionName(st.Version), tls.CipherSuiteName(st.CipherSuite), printable(st.NegotiatedProtocol)
	h.Left = math.Inf(1)
	for i, c := range st.PeerCertificates {
		if i == maxCerts {
			break
		}
		h.Chain = append(h.Chain, certificate(c))
		h.Left = min(h.Left, days(c.NotAfter, now))
	}
	if len(h.Chain) == 0 {
		h.Left = 0
	}
	err := verify(st.PeerCertificates, name, roots, now)
	if h.Verified = err == nil; err != nil {
		h.Reason = err.Error()
		h.Class = classCertificate
	}
}

// verify is what each client does. Its error says what to do.
func verify(chain []*x509.Certificate, name string, roots *x509.CertPool, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the server shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now})
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case err == nil:
		return nil
	case now.After(leaf.NotAfter):
		return fmt.Errorf("expired on %s: renew it", leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("not valid before %s: is the clock of either machine wrong?", leaf.NotBefore.UTC().Format(time.RFC3339))
	case errors.As(err, &host):
		return fmt.Errorf("it is for %s, not for %s", names(leaf), name)
	case errors.As(err, &unknown) && len(chain) == 1 && leaf.Issuer.String() == leaf.Subject.String():
		return errors.New("it is signed by itself: name it as the service's ca if it is the right one")
	case errors.As(err, &unknown) && len(chain) == 1 && !leaf.IsCA:
		return fmt.Errorf("its authority %q is not known here: the server may have to send the intermediate certificate, or a private authority has to be named as the service's ca", printable(leaf.Issuer.CommonName))
	case errors.As(err, &unknown):
		return fmt.Errorf("its authority %q is not known here: if it is a private one, name it as the service's ca", printable(chain[len(chain)-1].Issuer.CommonName))
	}
	return errors.New(printable(clipTo(err.Error(), maxValue)))
}

// days are those that are left, to a tenth.
func days(until, now time.Time) float64 { return math.Round(until.Sub(now).Hours()/2.4) / 10 }

func names(c *x509.Certificate) string {
	list := certificate(c).Names
	if len(list) == 0 {
		return "no name"
	}
	if len(list) > 5 {
		list = append(list[:5:5], "…")
	}
	return strings.Join(list, ", ")
}

func certificate(c *x509.Certificate) Certificate {
	sum := sha256.Sum256(c.Raw)
	one := Certificate{
		Subject: clipTo(printable(c.Subject.String()), maxValue), Issuer: clipTo(printable(c.Issuer.String()), maxValue), Serial: clipTo(c.SerialNumber.Text(16), 64),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, CA: c.IsCA, Signature: c.SignatureAlgorithm.String(), Fingerprint: hex.EncodeToString(sum[:]),
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		one.Key = fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		one.Key = fmt.Sprintf("ECDSA %d", k.Curve.Params().BitSize)
	case ed25519.PublicKey:
		one.Key = "Ed25519"
	default:
		one.Key = c.PublicKeyAlgorithm.String()
	}
	for _, n := range c.DNSNames {
		one.Names = append(one.Names, clipTo(printable(n), 255))
	}
	for _, ip := range c.IPAddresses {
		one.Names = append(one.Names, ip.String())
	}
	one.Names = one.Names[:min(len(one.Names), maxNames)]
	return one
}

// rootsOf are those that verify a target: of a service if it is one's.
func (s *Site) rootsOf(host string, port uint16) *x509.CertPool {
	at := net.JoinHostPort(host, fmt.Sprint(port))
	for _, t := range s.targets() {
		if t.Roots != nil && strings.EqualFold(t.Address, at) {
			return t.Roots
		}
	}
	return s.Roots
}

// printable replaces what could steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func badRequest(format string, a ...any) error {
	return rest.Errorf(http.StatusBadRequest, format, a...)
}
