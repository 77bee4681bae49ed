package private

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftpd"
)

// Service is one service of the site.
type Service struct {
	relay.Service

	// RootCAs verify the certificate of an https, h2 or rtsps target, and of an https snapshot. If nil, the
	// system's do.
	RootCAs *x509.CertPool

	// ProxyProtocol is the version, 1 or 2, of the PROXY protocol header that tells the target who the visitor
	// is: ahead of each connection, or of each datagram. 0: none.
	ProxyProtocol int

	// TLS ends the TLS of visitors here. If nil, the target of a tls:// publish does.
	TLS *TLS

	// Deadline is how long what a camera shows may wait on its way to visitors: video that is older is dropped,
	// up to the next key frame. 0: it waits.
	Deadline time.Duration

	// IgnoreCase finds files of a tftp service whose names differ in case, and takes backslashes in names as slashes.
	// For file targets only.
	IgnoreCase bool

	// Snapshot is where a camera has a picture of what it sees, as relay.ParseSnapshot reads it. Zero: nowhere.
	Snapshot relay.Target

	// Handler answers the requests to a rest target. If there is no target at all, it is the service: a part of this
	// program, served by pkg/httpd, with the visitor in http.Request.RemoteAddr. A request's goroutine ends with it.
	Handler http.Handler

	listener *Listener // that has made the service, or nil
}

// Bounds of a Service's Deadline: less than the jitter of a radio link would drop all the time, and what waits is kept
// in memory.
const MinDeadline, MaxDeadline = 100 * time.Millisecond, 30 * time.Second

// complete says where a service without a target ends.
func (s *Service) complete() {
	if s.Target == (relay.Target{}) && (s.Handler != nil || s.listener != nil) {
		s.Target = relay.Target{Scheme: relay.SchemeListen, Host: "program"}
	}
}

// Validate reports what is wrong with s, naming the service.
func (s Service) Validate() error {
	s.complete()
	if err := s.Service.Validate(); err != nil {
		return err
	}
	switch own := relay.PerVisitor(s.Target.Scheme); {
	case own && (s.Handler == nil) == (s.listener == nil):
		return fmt.Errorf("service %q: an %s:// target needs a Handler", s.Name, s.Target.Scheme)
	case !own && s.Handler != nil:
		return fmt.Errorf("service %q: a Handler is for a rest:// target, or for none", s.Name)
	case s.Handler != nil && s.Publish.Scheme == "tcp":
		return fmt.Errorf("service %q: a tcp:// publish carries no HTTP for a Handler: publish https:// or use Listen", s.Name)
	case own && s.ProxyProtocol != 0:
		return fmt.Errorf("service %q: proxy_protocol is for targets that are servers: this program knows the visitor", s.Name)
	case s.Target.Scheme == "rest" && s.Publish.Scheme == "tls" && (s.TLS == nil || s.TLS.ClientCAs == nil):
		return fmt.Errorf("service %q: a rest:// target is for operators: leave publish out, or have this relay end the TLS (tls = \"acme\", or certificate and certificate_key) "+
			"and demand client_ca of visitors", s.Name)
	}
	if !s.Target.IsCamera() && (s.Deadline != 0 || s.Snapshot != relay.Target{}) {
		return fmt.Errorf("service %q: deadline and snapshot are for rtsp:// and rtsps:// targets, not %s://", s.Name, s.Target.Scheme)
	}
	if s.Deadline != 0 && (s.Deadline < MinDeadline || s.Deadline > MaxDeadline) {
		return fmt.Errorf("service %q: deadline %v: want %v to %v", s.Name, s.Deadline, MinDeadline, MaxDeadline)
	}
	if s.IgnoreCase && (s.Publish.Scheme != "tftp" || s.Target.Scheme != "file") {
		return fmt.Errorf("service %q: ignore_case is for tftp:// publishes with a file:// target", s.Name)
	}
	if s.TLS != nil {
		if err := s.TLS.validate(s.Service); err != nil {
			return err
		}
	} else if s.Publish.Scheme == "tls" && s.Target.Scheme != "tcp" && s.Target.Scheme != "unix" && s.listener == nil {
		return fmt.Errorf("service %q: an %s:// target does not end the TLS of a tls:// publish: have this relay do it (tls = \"acme\", or certificate and certificate_key), "+
			"or name a tcp:// or unix:// target that does", s.Name, s.Target.Scheme)
	}
	switch p := s.ProxyProtocol; {
	case p == 0:
	case p != 1 && p != 2:
		return fmt.Errorf("service %q: proxy_protocol %d: want 1 or 2", s.Name, p)
	case s.Target.Scheme == "udp":
		if p != 2 {
			return fmt.Errorf("service %q: proxy_protocol 1 knows no datagrams: want 2", s.Name)
		}
	case s.Publish.Scheme == "tftp":
		return fmt.Errorf("service %q: proxy_protocol is for tcp://, tls:// and udp:// publishes: it is this relay that asks for files", s.Name)
	case s.Target.Scheme == "file":
		return fmt.Errorf("service %q: proxy_protocol is for targets that are servers", s.Name)
	case s.TLS != nil: // each visitor has a connection to the target
	case s.Target.Scheme != "tcp" && s.Target.Scheme != "unix", !s.Publish.IsZero() && s.Publish.Scheme != "tcp" && s.Publish.Scheme != "tls":
		return fmt.Errorf("service %q: proxy_protocol is for tcp://, tls:// and udp:// publishes: visitors share the connections to an HTTP target, "+
			"and X-Forwarded-For has their addresses", s.Name)
	}
	return nil
}

// service is a Service made ready to be used. It is immutable but for its counters, which any loop and
// Status touch.
type service struct {
	Service
	network, address string        // to dial; empty for a folder
	tls              *tls.Config   // of an https, h2 or rtsps target, or nil
	files            *httpd.Server // of a file target or a Handler, or nil
	store            tftpd.Store   // of a tftp service, or nil
	pictures         *httpd.Server // snapshots of a camera, or nil
	terminate        *tls.Config   // of visitors, or nil
	ended            func(error)   // streamEnded, made once and not for each stream

	open     atomic.Int64  // streams now, but those of a folder
	total    atomic.Uint64 // streams ever
	failed   atomic.Uint64 // streams whose target could not be reached
	unshaken atomic.Uint64 // streams whose TLS handshake has failed
	down     atomic.Bool   // the last stream could not reach the target, which has been logged

	dropped   atomic.Uint64 // frames of a camera that were too late for a visitor
	droppedAt atomic.Int64  // when the log was told, in Unix nanoseconds
	brokenAt  atomic.Int64  // when the log was told of a file that broke off, in Unix nanoseconds
	denied    atomic.Bool   // a camera has not let the last stream in, which has been logged
	deniedAt  atomic.Int64  // when it has last refused the password, in Unix nanoseconds
}

// newService checks what of a target can be checked without dialling it: a folder must be there.
func newService(s Service) (*service, error) {
	s.complete()
	if err := s.Validate(); err != nil {
		return nil, err
	}
	made := &service{Service: s}
	made.ended = made.streamEnded
	t := s.Target
	if s.Publish.Scheme == "tftp" {
		return made, nil // see newStore
	}
	switch t.Scheme {
	case "rest", relay.SchemeListen:
		if s.Handler != nil {
			made.files = &httpd.Server{Handler: s.Handler}
		}
	case "unix":
		made.network, made.address = "unix", t.Path
	case "file":
		root, err := os.OpenRoot(t.Path)
		if err != nil {
			return nil, fmt.Errorf("service %q: target %q: %w", s.Name, t, err)
		}
		// The root is closed by the garbage collector, when a reload has replaced the service and
		// its last stream has ended.
		made.files = &httpd.Server{Handler: &httpd.FileHandler{Root: root}}
	case "udp":
		made.network, made.address = "udp", net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	default:
		made.network, made.address = "tcp", net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
		// What the public relay sends.
		if proto := map[string]string{"https": "http/1.1", "h2": "h2"}[t.Scheme]; proto != "" {
			made.tls = &tls.Config{RootCAs: s.RootCAs, ServerName: t.Host, NextProtos: []string{proto}}
		} else if t.Scheme == "rtsps" {
			made.tls = cameraTLS(s.RootCAs, t.Host)
		}
	}
	return made, nil
}
