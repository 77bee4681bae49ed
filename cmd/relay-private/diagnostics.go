package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/diag"
	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/rest"
)

// diagnosticsName is the service that `diagnostics = true` adds.
const diagnosticsName = "diagnostics"

// siteTarget is rest://site.
var siteTarget = relay.Target{Scheme: "rest", Host: "site"}

// checkDiagnostics reads what the file says of diagnostics, and adds their service. It comes after all others have been read.
func (c *config) checkDiagnostics(f *daemon.File, s *settings) {
	for i, text := range c.DiagnosticsTargets {
		rule, err := diag.ParseRule(text)
		if err != nil {
			f.Addf(fmt.Sprintf("diagnostics_targets[%d]", i), "diagnostics_targets: %v", err)
		}
		s.allowed = append(s.allowed, rule)
	}
	if f.Has("diagnostics_targets") && len(c.DiagnosticsTargets) == 0 {
		s.allowed = []diag.Rule{} // nobody
	}
	for i, server := range c.DiagnosticsNTP {
		if err := diag.CheckServer(server); err != nil {
			f.Addf(fmt.Sprintf("diagnostics_ntp[%d]", i), "diagnostics_ntp: %v", err)
		}
	}
	s.ntp = c.DiagnosticsNTP
	if !c.Diagnostics {
		for i, svc := range s.services {
			if svc.Target.Scheme == siteTarget.Scheme {
				f.Addf(fmt.Sprintf("service[%d].target", i), "target \"rest://site\" needs the line `diagnostics = true` above the first [[service]]")
			}
		}
		return
	}
	i := slices.IndexFunc(s.services, func(svc private.Service) bool { return svc.Name == diagnosticsName })
	switch {
	case i < 0:
		s.services = append(s.services, private.Service{Service: relay.Service{Name: diagnosticsName, Target: siteTarget}, Handler: http.NotFoundHandler()})
	case s.services[i].Target.Scheme != siteTarget.Scheme:
		f.Addf(fmt.Sprintf("service[%d].name", i), "diagnostics = true adds a service %q: give this one another name", diagnosticsName)
	}
}

// diagnostics answers for rest://site.
type diagnostics struct {
	settings atomic.Pointer[settings]
	certs    *certificates
	server   *rest.Server
}

func newDiagnostics(s *settings, certs *certificates, log *slog.Logger) *diagnostics {
	d := &diagnostics{certs: certs}
	d.settings.Store(s)
	d.server = &rest.Server{
		Prefix: "/", Title: "Diagnostics of site " + s.site, Version: version, Log: log,
		Limits: rest.Limits{MaxBody: 64 << 10, MaxCalls: 64, MaxFeeds: 1, MaxSockets: 256, CallTimeout: 45 * time.Second},
		Done: func(c *rest.Call, _ any, err error, took time.Duration) {
			log.Debug("diagnostics", "method", c.Method, "from", c.Remote, "took", took, "err", err)
		},
	}
	return d
}

// close waits for what is under way.
func (d *diagnostics) close() { d.server.Close() }

// use has the services that tell of the site do so.
func (d *diagnostics) use(services []private.Service) {
	for i := range services {
		if services[i].Target == siteTarget {
			services[i].Handler = d.server
		}
	}
}

// begin says what is to be told, as soon as there is a relay.
func (d *diagnostics) begin(r *private.Relay, log *slog.Logger) {
	s := d.settings.Load()
	site := &diag.Site{
		Name: s.site, Software: "culvert " + version, Folders: []string{s.state}, Log: log,
		Allow:   func() []diag.Rule { return d.settings.Load().allowed },
		NTP:     func() []string { return d.settings.Load().ntp },
		Targets: func() []diag.Target { return d.targets(d.settings.Load().services) },
		Relays:  func() []diag.Relay { return relaysOf(r.Status()) },
		Cameras: d.cameras,
	}
	d.server.Set(site.Service())
}

// cameras looks for cameras as it is done for `tunnelctl cameras`, if the site has discovery.
func (d *diagnostics) cameras(ctx context.Context, user, password string) ([]onvif.Device, error) {
	s := d.settings.Load()
	if !s.discovery {
		return nil, rest.Errorf(http.StatusForbidden, "%v", errDiscoveryOff)
	}
	f := onvif.Finder{User: user, Password: password, Addresses: s.probed}
	return f.Find(ctx)
}

// targets are those of services.
func (d *diagnostics) targets(services []private.Service) (list []diag.Target) {
	for _, svc := range services {
		t := svc.Target
		if t == siteTarget {
			continue
		}
		one := diag.Target{Service: svc.Name, Publish: svc.Publish.String(), URL: t.String()}
		switch t.Scheme {
		case "file":
			one.Folder, one.Address = true, t.Path
		case "unix":
			one.Network, one.Address = "unix", t.Path
		case "udp", "tftp":
			one.Address = net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
		default:
			one.Network, one.Address = "tcp", net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
		}
		switch t.Scheme {
		case "https":
			one.TLS, one.ALPN = true, "http/1.1"
		case "h2":
			one.TLS, one.ALPN = true, "h2"
		case "rtsps":
			one.TLS = true
		}
		one.Roots = svc.RootCAs
		if svc.TLS != nil {
			one.Certificate = d.certificateOf(svc)
		}
		list = append(list, one)
	}
	return list
}

var errNoCertificate = errors.New("there is none yet: the log says why it could not be obtained")

// certificateOf is what visitors of a service are shown.
func (d *diagnostics) certificateOf(svc private.Service) func(context.Context) (*x509.Certificate, error) {
	return func(context.Context) (*x509.Certificate, error) {
		var c *tls.Certificate
		if !svc.TLS.ACME {
			var err error
			if c, err = svc.TLS.GetCertificate(&tls.ClientHelloInfo{ServerName: svc.Publish.Host}); err != nil {
				return nil, err
			}
		} else if d.certs != nil {
			c = d.certs.Certificate(svc.Publish.Host)
		}
		switch {
		case c == nil || len(c.Certificate) == 0:
			return nil, errNoCertificate
		case c.Leaf != nil:
			return c.Leaf, nil
		}
		return x509.ParseCertificate(c.Certificate[0])
	}
}

// relaysOf tells of the sessions.
func relaysOf(st private.Status) (list []diag.Relay) {
	for _, p := range st.Relays {
		one := diag.Relay{Address: p.Address, Linked: p.Linked, Standby: p.Standby, Choice: p.Choice, Problem: p.Problem}
		for _, l := range p.Lines {
			one.Links = append(one.Links, diag.Link{
				Transport: l.Transport, Role: l.Role, State: l.State, RTT: float64(l.RTT.Microseconds()) / 1000, Since: l.Since, Problem: l.Problem,
			})
		}
		list = append(list, one)
	}
	return list
}
