// Package diag is what a private relay tells its operators of its site, and tries for them there: the machine and its
// networks, names, clocks, servers and their certificates.
//
//	site := &diag.Site{Name: "office", Software: "culvert 1.2"}
//	srv := &rest.Server{Title: "office", Version: "1.2"}
//	srv.Set(site.Service())
//	service := private.Service{Service: relay.Service{Name: "diagnostics", Target: target}, Handler: srv} // target is rest://site
//
//	GET /site/Connect?target=db.lan:5432     {"target":"db.lan:5432","ok":true,"address":"10.0.0.5:5432","lookup_ms":0.4,"connect_ms":0.6}
//
// Gather calls all of it, from afar, and makes one Report, whose Findings say what is wrong and what to do.
//
// Invariants: nobody is asked whom the Rules do not allow, whatever name or redirect leads there; what is asked is looked up
// once, and the address that was allowed is the one that is dialled. No certificate is taken for good that is not: one that
// does not verify is shown with the reason. Each method has a bound of time, of how often and of how many at once, and what
// others send is bounded and printable. Nothing is changed, but that Wake sends a datagram.
package diag

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/rest"
)

const (
	maxAtOnce   = 16 // methods that ask somebody
	perSecond   = 10 // and how many of them there may be
	burst       = 60
	checkTime   = 5 * time.Second // for one of the services
	maxChecked  = 16              // services that are looked at at once
	maxServices = 1024
	samplesNTP  = 4
	cameraTime  = 30 * time.Second
	clockTime   = 8 * time.Second // for one server
)

// Site is the machine of a private relay, and the networks that it is in. Its fields are set before Service is called.
type Site struct {
	Name     string
	Software string

	// Allow returns what may be asked, in the configuration of the moment. If it is nil or returns nil: the site's own
	// networks, and the targets of its services.
	Allow func() []Rule

	// Targets returns those of the site's services, in the configuration of the moment. nil: none.
	Targets func() []Target

	// Relays returns the state of the sessions with the public relays. nil: none.
	Relays func() []Relay

	// NTP returns the servers that Clock asks if it is not told others: HOST or HOST:PORT. They are allowed. nil: none.
	NTP func() []string

	// Cameras looks for cameras; its error is told as it is. nil: nobody can have it done.
	Cameras func(ctx context.Context, user, password string) ([]onvif.Device, error)

	// Folders are those whose disks the relay needs, beside the system's.
	Folders []string

	// Roots verify certificates, but those of targets that have their own. nil: the system's.
	Roots *x509.CertPool

	// Resolver looks names up. nil: net.DefaultResolver.
	Resolver *net.Resolver

	// Log gets a line for each machine that is woken. nil: nobody gets it.
	Log *slog.Logger

	began      time.Time
	resolvConf string // "": that of the system
	wakePort   uint16 // 0: 9, discard

	limit    *rate.Limiter // of what asks others
	atOnce   chan struct{}
	checking chan struct{} // one check of all services at a time
	looking  chan struct{} // and one search for cameras
}

// Target is where the visitors of a service end up.
type Target struct {
	Service string
	Publish string // "": operators only
	URL     string // without secrets
	Network string // "tcp", "unix", or "" for what cannot be dialled
	Address string // to dial: HOST:PORT, or the path of a socket; of a folder, its path
	Folder  bool
	TLS     bool           // it speaks TLS from the first byte
	ALPN    string         // what it has to speak then; may be ""
	Roots   *x509.CertPool // that verify it; nil: the system's

	// Certificate returns what visitors are shown if TLS ends at this relay. nil: it does not.
	Certificate func(ctx context.Context) (*x509.Certificate, error)
}

// Service returns the methods, at the root "site".
func (s *Site) Service() *rest.Service {
	s.began = time.Now()
	s.limit = rate.NewLimiter(perSecond, burst)
	s.atOnce = make(chan struct{}, maxAtOnce)
	s.checking, s.looking = make(chan struct{}, 1), make(chan struct{}, 1)
	type none struct{}
	return &rest.Service{
		Root: "site", Bare: true,
		Doc: "What the private relay tells of its site, and tries there. Targets are those that the site allows.",
		Methods: []*rest.Method{
			rest.Of("Host", func(context.Context, none) (Host, error) { return s.host(), nil },
				rest.Doc("The machine: time, load, memory, disks, versions, open files.")),
			rest.Of("Interfaces", func(context.Context, none) ([]Interface, error) { return interfaces() },
				rest.Doc("The machine's network interfaces, with their addresses.")),
			rest.Of("Routes", func(context.Context, none) ([]Route, error) { return routes() },
				rest.Doc("The machine's routes. On Linux.")),
			rest.Of("Neighbours", func(context.Context, none) ([]Neighbour, error) { return neighbours() },
				rest.Doc("The machines that this one has spoken to lately, by ARP and NDP. On Linux.")),
			rest.Of("Relays", func(context.Context, none) ([]Relay, error) { return s.relays(), nil },
				rest.Doc("The sessions with the public relays: links, transports, and why these.")),
			rest.Of("Services", bounded(s, func(ctx context.Context, _ none) ([]Checked, error) { return s.check(ctx) }),
				rest.Doc("The site's services, and whether their targets can be reached now.")),
			rest.Of("Lookup", bounded(s, s.lookup), rest.Doc("Records of a name in the DNS.")),
			rest.Of("Clock", bounded(s, s.clock), rest.Doc("How far the machine's clock is off, by NTP.")),
			rest.Of("Connect", bounded(s, s.connect), rest.Doc("Whether a target can be reached by TCP.")),
			rest.Of("Certificate", bounded(s, s.inspect), rest.Doc("The certificate of a target, and whether it is good.")),
			rest.Of("Probe", bounded(s, s.probe), rest.Doc("What a web server answers, and how long it takes.")),
			rest.Of("Wake", bounded(s, s.wake), rest.Changes(), rest.Doc("Sends a magic packet (wake-on-LAN) to all networks of the machine.")),
			rest.Of("Cameras", bounded(s, s.cameras), rest.Verbs(http.MethodPost), rest.Doc("Looks for ONVIF cameras, if the site has discovery.")),
		},
	}
}

// bounded bounds how often and how many at once others are asked, for all of those methods together.
func bounded[In, Out any](s *Site, f func(context.Context, In) (Out, error)) func(context.Context, In) (Out, error) {
	return func(ctx context.Context, in In) (out Out, err error) {
		if !s.limit.Allow() {
			return out, rest.Errorf(http.StatusTooManyRequests, "too many questions: no more than %d a second", perSecond)
		}
		select {
		case s.atOnce <- struct{}{}:
		default:
			return out, rest.Errorf(http.StatusTooManyRequests, "%d questions are under way: try again when they are answered", maxAtOnce)
		}
		defer func() { <-s.atOnce }()
		return f(ctx, in)
	}
}

// Relay is the session with one public relay.
type Relay struct {
	Address string `json:"address"`
	Linked  bool   `json:"linked"`
	Standby bool   `json:"standby,omitempty"` // another private relay of the site gets its visitors
	Choice  string `json:"choice,omitempty"`  // which transports are used, and why
	Problem string `json:"problem,omitempty"` // why there is no link
	Links   []Link `json:"links,omitempty"`
}

// Link is one of the links that it is to have.
type Link struct {
	Transport string    `json:"transport"` // wss or quic
	Role      string    `json:"role"`      // interactive, bulk or datagram
	State     string    `json:"state"`     // linked, suspect, dialling, waiting or idle
	RTT       float64   `json:"rtt_ms,omitempty"`
	Since     time.Time `json:"since"` // of the link; without one, of its loss
	Problem   string    `json:"problem,omitempty"`
}

func (s *Site) relays() []Relay {
	if s.Relays == nil {
		return []Relay{}
	}
	return append([]Relay{}, s.Relays()...)
}

// Checked is a service, and how its target does.
type Checked struct {
	Service string     `json:"service"`
	Publish string     `json:"publish,omitempty"` // "": operators only
	Target  string     `json:"target"`
	Checked bool       `json:"checked"` // false: of this kind nothing can be told without using it
	OK      bool       `json:"ok"`
	Took    float64    `json:"took_ms,omitempty"`
	Class   string     `json:"class,omitempty"` // see Connection
	Problem string     `json:"problem,omitempty"`
	TLS     *Handshake `json:"tls,omitempty"`         // of the target
	Shown   *Shown     `json:"certificate,omitempty"` // to visitors, if their TLS ends at this relay
}

// Shown is a certificate of this relay.
type Shown struct {
	Names    []string  `json:"names,omitempty"`
	NotAfter time.Time `json:"not_after"`
	Left     float64   `json:"days_left"`
	Problem  string    `json:"problem,omitempty"`
}

// check looks at the targets of all services.
func (s *Site) check(ctx context.Context) ([]Checked, error) {
	select {
	case s.checking <- struct{}{}:
	default:
		return nil, rest.Errorf(http.StatusTooManyRequests, "the services are being looked at: try again in some seconds")
	}
	defer func() { <-s.checking }()
	all := s.targets()
	list := make([]Checked, min(len(all), maxServices))
	turn := make(chan struct{}, maxChecked)
	var looking sync.WaitGroup
	for i := range list {
		turn <- struct{}{}
		looking.Go(func() {
			list[i] = s.checkOne(ctx, all[i])
			<-turn
		})
	}
	looking.Wait()
	return list, ctx.Err()
}

func (s *Site) checkOne(ctx context.Context, t Target) Checked {
	c := Checked{Service: t.Service, Publish: t.Publish, Target: t.URL}
	ctx, cancel := context.WithTimeout(ctx, 2*checkTime)
	defer cancel()
	start := time.Now()
	fail := func(err error) {
		c.Class, c.Problem = classify(err)
	}
	switch {
	case t.Folder:
		c.Checked = true
		info, err := os.Stat(t.Address)
		switch {
		case err != nil:
			c.Class, c.Problem = classOther, printable(err.Error())
		case !info.IsDir():
			c.Class, c.Problem = classOther, "it is no folder"
		default:
			c.OK = true
		}
	case t.Network == "unix", t.Network == "tcp":
		c.Checked = true
		d := net.Dialer{Timeout: checkTime, Resolver: s.Resolver}
		conn, err := d.DialContext(ctx, t.Network, t.Address)
		if err != nil {
			fail(err)
			break
		}
		c.OK = true
		c.Took = ms(time.Since(start))
		if t.TLS {
			h := &Handshake{Connection: Connection{Target: t.Address, OK: true, Address: conn.RemoteAddr().String(), Connect: c.Took}}
			host, _, _ := net.SplitHostPort(t.Address)
			var protocols []string
			if t.ALPN != "" {
				protocols = []string{t.ALPN}
			}
			h.Name = host
			h.shake(ctx, conn, host, protocols, t.Roots, checkTime)
			c.TLS = h
			if !h.OK || !h.Verified {
				c.OK, c.Class, c.Problem = false, h.Class, either(h.Problem, "its certificate is not good: "+h.Reason)
			}
		}
		conn.Close()
	}
	if c.Took == 0 && c.Checked {
		c.Took = ms(time.Since(start))
	}
	if t.Certificate != nil {
		shown := new(Shown)
		if leaf, err := t.Certificate(ctx); err != nil {
			shown.Problem = printable(clipTo(err.Error(), maxValue))
		} else {
			one := certificate(leaf)
			shown.Names, shown.NotAfter = one.Names, one.NotAfter
			shown.Left = days(leaf.NotAfter, time.Now())
		}
		c.Shown = shown
	}
	return c
}

// Clocks says which servers of NTP are asked.
type Clocks struct {
	Server string `json:"server,omitempty" doc:"HOST or HOST:PORT; the default is those of the site's configuration" max:"260"`
}

func (s *Site) ntp() []string {
	if s.NTP == nil {
		return nil
	}
	return s.NTP()
}

// clock asks servers at the same time, each for itself.
func (s *Site) clock(ctx context.Context, in Clocks) ([]Clock, error) {
	servers := s.ntp()
	if in.Server != "" {
		servers = []string{in.Server}
	}
	if len(servers) == 0 {
		return nil, badRequest("the site names no servers of NTP: name one")
	}
	servers = servers[:min(len(servers), 8)]
	list := make([]Clock, len(servers))
	errs := make([]error, len(servers))
	var asking sync.WaitGroup
	for i, server := range servers {
		asking.Go(func() { list[i], errs[i] = s.clockOf(ctx, server) })
	}
	asking.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (s *Site) clockOf(ctx context.Context, server string) (Clock, error) {
	c := Clock{Server: server}
	host, port, err := splitTarget(server, 123)
	if err != nil {
		return c, err
	}
	ctx, cancel := context.WithTimeout(ctx, clockTime)
	defer cancel()
	var list []netip.Addr
	if slices.Contains(s.ntp(), server) { // the file says so
		if a, e := netip.ParseAddr(host); e == nil {
			list = []netip.Addr{a}
		} else if list, err = s.resolver().LookupNetIP(ctx, "ip", host); err == nil {
			list = slices.DeleteFunc(list, isSpecial)
		}
	} else if list, err = s.resolve(ctx, host, port); err != nil {
		if _, refused := errors.AsType[*rest.Error](err); refused {
			return c, err
		}
	}
	if err == nil && len(list) == 0 {
		return c, forbidden(server)
	}
	for _, a := range list[:min(len(list), 2)] { // one of each family
		var got Clock
		if got, err = askNTP(ctx, netip.AddrPortFrom(a.Unmap(), port), samplesNTP, time.Now); err == nil {
			got.Server = server
			return got, nil
		}
		c.Address = got.Address
	}
	_, c.Problem = classify(err)
	return c, nil
}

func (s *Site) wake(ctx context.Context, in Wake) (Woken, error) {
	port := s.wakePort
	if port == 0 {
		port = 9
	}
	w, err := wake(ctx, in, port)
	if err == nil && s.Log != nil {
		s.Log.Info("an operator has had a machine woken", "mac", w.MAC, "sent", strings.Join(w.Sent, ", "))
	}
	return w, err
}

// Search says as whom cameras are asked.
type Search struct {
	User     string `json:"user,omitempty" max:"128"`
	Password string `json:"password,omitempty" max:"256"`
}

// String does not show the password.
func (c Search) String() string { return fmt.Sprintf("search as %q", c.User) }

func (s *Site) cameras(ctx context.Context, in Search) ([]onvif.Device, error) {
	if s.Cameras == nil {
		return nil, rest.Errorf(http.StatusForbidden, "this site does not let operators look for cameras: put discovery = true into its private.toml")
	}
	select {
	case s.looking <- struct{}{}:
	default:
		return nil, rest.Errorf(http.StatusTooManyRequests, "another search is under way: try again in half a minute")
	}
	defer func() { <-s.looking }()
	ctx, cancel := context.WithTimeout(ctx, cameraTime)
	defer cancel()
	list, err := s.Cameras(ctx, in.User, in.Password)
	return append([]onvif.Device{}, list...), err
}
