package private

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"

	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
)

// Service is one service of the site.
type Service struct {
	relay.Service

	// RootCAs verify the certificate of an https target. If nil, the system's do.
	RootCAs *x509.CertPool
}

// service is a Service made ready to be used. It is immutable but for its counters, which any loop and
// Status touch.
type service struct {
	Service
	network, address string        // to dial; empty for a folder
	tls              *tls.Config   // of an https target, or nil
	files            *httpd.Server // of a file target, or nil
	ended            func(error)   // streamEnded, made once and not for each stream

	open   atomic.Int64  // streams now, but those of a folder
	total  atomic.Uint64 // streams ever
	failed atomic.Uint64 // streams whose target could not be reached
	down   atomic.Bool   // the last stream could not reach the target, which has been logged
}

// newService checks what of a target can be checked without dialling it: a folder must be there.
func newService(s Service) (*service, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	made := &service{Service: s}
	made.ended = made.streamEnded
	t := s.Target
	switch t.Scheme {
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
	default:
		made.network, made.address = "tcp", net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
		if t.Scheme == "https" {
			made.tls = &tls.Config{
				RootCAs:    s.RootCAs,
				ServerName: t.Host,
				NextProtos: []string{"http/1.1"}, // what the public relay sends
			}
		}
	}
	return made, nil
}
