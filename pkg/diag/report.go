package diag

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/egress"
	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/rest"
)

// Options say what a Report has beside what there is of each site.
type Options struct {
	Targets []string // HOST:PORT, or URLs of http and https, that are tried from there
	Names   []string // that are looked up there
	Cameras bool     // looks for cameras, which takes some seconds
}

// Report is all that was told of a site.
type Report struct {
	Site       string         `json:"site"`
	Time       time.Time      `json:"time"` // by the clock of who asks
	Findings   []Finding      `json:"findings"`
	Host       *Host          `json:"host,omitempty"`
	Drift      *Drift         `json:"drift,omitempty"`
	Interfaces []Interface    `json:"interfaces,omitempty"`
	Routes     []Route        `json:"routes,omitempty"`
	Neighbours []Neighbour    `json:"neighbours,omitempty"`
	Relays     []Relay        `json:"relays,omitempty"`
	Services   []Checked      `json:"services,omitempty"`
	Clocks     []Clock        `json:"clocks,omitempty"`
	Names      []Answer       `json:"names,omitempty"`
	Targets    []Tried        `json:"targets,omitempty"`
	Cameras    []onvif.Device `json:"cameras,omitempty"`
	Failed     []Failed       `json:"failed,omitempty"` // what could not be asked
}

// Drift is how far the site's clock is from that of who asks. It has a digit less than NTP: the way between is longer.
type Drift struct {
	Offset float64 `json:"offset_ms"` // what has to be added to the site's clock
	Error  float64 `json:"error_ms"`
}

// Tried is one of Options.Targets.
type Tried struct {
	Target  string      `json:"target"`
	Connect *Connection `json:"connect,omitempty"`
	TLS     *Handshake  `json:"tls,omitempty"`
	HTTP    *Probed     `json:"http,omitempty"`
	Problem string      `json:"problem,omitempty"` // why it was not tried
}

// Failed is a method that gave no answer.
type Failed struct {
	Method  string `json:"method"`
	Problem string `json:"problem"`
}

// Levels of a Finding.
const (
	Wrong   = "wrong"   // something does not work
	Warning = "warning" // it will not for long, or not well
	Note    = "note"    // good to know
)

// Finding is something that an operator should know, and what to do about it.
type Finding struct {
	Level   string `json:"level"`
	Subject string `json:"subject"` // "service db"
	Text    string `json:"text"`
	Do      string `json:"do,omitempty"`
}

// gathering is a Report that is being made.
type gathering struct {
	c  rest.Caller
	mu sync.Mutex
	r  *Report
}

// ask calls a method and gives what comes of it to take. What is not there on the site's system is left out.
func ask[Out, In any](ctx context.Context, g *gathering, method string, in In, take func(Out)) {
	out, err := rest.Invoke[Out](ctx, g.c, "site/"+method, in)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch e, refused := errors.AsType[*rest.Error](err); {
	case err == nil:
		take(out)
	case refused && e.Code == http.StatusNotImplemented:
	default:
		g.r.Failed = append(g.r.Failed, Failed{method, printable(err.Error())})
	}
}

type nothing struct{}

// Gather asks a site for everything, by its methods. It returns an error if the first of them gives no answer.
func Gather(ctx context.Context, c rest.Caller, o Options) (*Report, error) {
	g := &gathering{c: c, r: &Report{Time: time.Now()}}
	r := g.r
	asked := time.Now()
	h, err := rest.Invoke[Host](ctx, c, "site/Host", nothing{})
	if err != nil {
		return nil, err
	}
	took := time.Since(asked)
	r.Site, r.Host = h.Site, &h
	// The first question made the connection: the second one is the better measure of time.
	asked = time.Now()
	if again, err := rest.Invoke[Host](ctx, c, "site/Host", nothing{}); err == nil {
		h, took = again, time.Since(asked)
	}
	r.Drift = &Drift{Offset: ms(asked.Add(took / 2).Sub(h.Time)), Error: ms(took / 2)}
	ask(ctx, g, "Relays", nothing{}, func(v []Relay) { r.Relays = v })

	var all sync.WaitGroup
	all.Go(func() { ask(ctx, g, "Interfaces", nothing{}, func(v []Interface) { r.Interfaces = v }) })
	all.Go(func() { ask(ctx, g, "Routes", nothing{}, func(v []Route) { r.Routes = v }) })
	all.Go(func() { ask(ctx, g, "Neighbours", nothing{}, func(v []Neighbour) { r.Neighbours = v }) })
	all.Go(func() { ask(ctx, g, "Services", nothing{}, func(v []Checked) { r.Services = v }) })
	if len(h.NTP) > 0 {
		all.Go(func() { ask(ctx, g, "Clock", Clocks{}, func(v []Clock) { r.Clocks = v }) })
	}
	if o.Cameras {
		all.Go(func() { ask(ctx, g, "Cameras", Search{}, func(v []onvif.Device) { r.Cameras = v }) })
	}
	all.Go(func() { // one after the other, as there may be many
		for _, in := range g.lookups(o) {
			ask(ctx, g, "Lookup", in, func(v Answer) { r.Names = append(r.Names, v) })
		}
		for _, target := range o.Targets {
			tried := g.try(ctx, target)
			g.mu.Lock()
			r.Targets = append(r.Targets, tried)
			g.mu.Unlock()
		}
	})
	all.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	slices.SortFunc(r.Failed, func(a, b Failed) int { return strings.Compare(a.Method, b.Method) })
	r.Findings = r.find()
	return r, nil
}

// lookups are names that the site needs: those of its relays, or else of its clocks, as the relay itself looks them up and by
// each of the system's name servers; and those that were asked for.
func (g *gathering) lookups(o Options) (list []Lookup) {
	var needed []string
	for _, relay := range g.r.Relays {
		needed = append(needed, relay.Address)
	}
	needed = append(needed, g.r.Host.NTP...)
	for _, address := range needed {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		if _, err := netip.ParseAddr(host); err == nil || !egress.IsName(host) || host == "localhost" {
			continue
		}
		list = append(list, Lookup{Name: host})
		for _, server := range g.r.Host.Nameservers {
			list = append(list, Lookup{Name: host, Server: server})
		}
		break
	}
	for _, name := range o.Names {
		list = append(list, Lookup{Name: name})
	}
	return list
}

// try tries one target: a connection, and TLS if there is some, or a URL.
func (g *gathering) try(ctx context.Context, target string) Tried {
	t := Tried{Target: target}
	fail := func(err error) Tried {
		t.Problem = printable(err.Error())
		return t
	}
	if strings.Contains(target, "://") {
		p, err := rest.Invoke[Probed](ctx, g.c, "site/Probe", Probe{URL: target, Method: http.MethodGet, Redirects: maxRedirects, Timeout: 10})
		if err != nil {
			return fail(err)
		}
		t.HTTP = &p
		return t
	}
	c, err := rest.Invoke[Connection](ctx, g.c, "site/Connect", Connect{Target: target, Timeout: 5})
	if err != nil {
		return fail(err)
	}
	t.Connect = &c
	if !c.OK {
		return t
	}
	h, err := rest.Invoke[Handshake](ctx, g.c, "site/Certificate", Inspect{Target: target, Timeout: 3})
	if err == nil && len(h.Chain) > 0 { // what does not speak TLS has none
		t.TLS = &h
	}
	return t
}

// What is worth a word.
const (
	clockOff    = 1000.0 // ms
	daysWrong   = 3.0
	daysWarning = 14.0
	diskLow     = 0.05
	memoryLow   = 0.05
	filesHigh   = 0.8
)

// find says what is wrong, the worst first.
func (r *Report) find() []Finding {
	list := []Finding{}
	add := func(level, subject, do, format string, a ...any) {
		list = append(list, Finding{level, subject, fmt.Sprintf(format, a...), do})
	}
	r.findRelays(add)
	for _, s := range r.Services {
		s.find(add)
	}
	r.findClock(add)
	r.findNames(add)
	r.findHost(add)
	for _, t := range r.Targets {
		t.find(add)
	}
	for _, f := range r.Failed {
		add(Note, f.Method, "", "was not answered: %s", f.Problem)
	}
	Sort(list)
	return list
}

// Sort puts the worst first.
func Sort(list []Finding) {
	rank := map[string]int{Wrong: 0, Warning: 1, Note: 2}
	slices.SortStableFunc(list, func(a, b Finding) int { return rank[a.Level] - rank[b.Level] })
}

type finder func(level, subject, do, format string, a ...any)

func (r *Report) findRelays(add finder) {
	for _, relay := range r.Relays {
		subject := "relay " + printable(relay.Address)
		if !relay.Linked {
			add(Wrong, subject, "see what is between: its name, its port 443, a proxy", "no link: %s", either(printable(relay.Problem), "it is being dialled"))
			continue
		}
		if relay.Standby {
			add(Note, subject, "", "stands by: another private relay of the site gets its visitors")
		}
		for _, l := range relay.Links {
			problem := either(printable(l.Problem), l.State)
			switch {
			case l.State == "linked":
			case l.Transport == "quic":
				add(Note, subject, "let UDP out to the relay's port if datagrams matter", "no QUIC link, WebSockets carry everything: %s", problem)
			default:
				add(Warning, subject, "", "a %s link of the role %s is %s: %s", l.Transport, l.Role, l.State, problem)
			}
		}
	}
}

// advice is what to do about a class of failures of a target of the site.
var advice = map[string]string{
	classRefused:     "start the server, or correct the port of the target in private.toml",
	classTimeout:     "see whether its machine is on, its address is right, and no firewall is between",
	classUnreachable: "see whether its machine is on and the address is right, and the site's routes",
	classReset:       "see the server's log, and whether it takes connections from the private relay's address",
	classNoName:      "correct the name, or the site's DNS",
	classDNS:         "see the site's name servers",
	classTLS:         "see whether the scheme of the target is right: https://, h2:// and rtsps:// are TLS",
	classCertificate: "renew or correct the server's certificate, or name its authority as the service's ca",
}

func (s Checked) find(add finder) {
	subject := "service " + printable(s.Service)
	if s.Checked && !s.OK {
		do := advice[s.Class]
		if s.Class == classOther {
			do = "correct the target in private.toml"
		}
		add(Wrong, subject, do, "target %s: %s", printable(s.Target), printable(s.Problem))
	} else if s.TLS != nil {
		expiry(add, subject, "the certificate of target "+printable(s.Target), s.TLS.Left)
	}
	if c := s.Shown; c != nil {
		if c.Problem != "" {
			add(Wrong, subject, "see the private relay's log", "its certificate: %s", printable(c.Problem))
		} else {
			expiry(add, subject, "its certificate", c.Left)
		}
	}
}

// expiry says that a certificate has not long to live.
func expiry(add finder, subject, what string, left float64) {
	switch {
	case left <= 0:
		add(Wrong, subject, "renew it now", "%s has expired %.1f days ago", what, -left)
	case left < daysWrong:
		add(Wrong, subject, "renew it now", "%s expires in %.1f days", what, left)
	case left < daysWarning:
		add(Warning, subject, "renew it, or see why it is not renewed by itself", "%s expires in %.0f days", what, left)
	}
}

func (r *Report) findClock(add finder) {
	const do = "have it set by NTP (timedatectl set-ntp true): certificates and tokens are good for a time"
	known, problem := false, ""
	for _, c := range r.Clocks {
		if c.Problem != "" {
			problem = printable(c.Server) + ": " + printable(c.Problem)
			continue
		}
		known = true
		if math.Abs(c.Offset)-c.Error > clockOff {
			add(Wrong, "clock", do, "is off: %s has to be added, says %s", span(c.Offset), printable(c.Server))
			return
		}
	}
	switch d := r.Drift; {
	case known:
	case d != nil && math.Abs(d.Offset)-d.Error > clockOff:
		add(Wrong, "clock", do, "is off by %s, beside the clock of this machine: one of them is wrong", span(d.Offset))
		return
	case problem != "":
		add(Note, "clock", "name a server that the site reaches, as diagnostics_ntp in private.toml", "no server of NTP answers: %s", problem)
	}
	if r.Host != nil && r.Host.Synced != nil && !*r.Host.Synced {
		add(Warning, "clock", do, "nobody sets it: it is right now and will drift")
	}
}

// span is a time of so many milliseconds for people.
func span(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	if d.Abs() > time.Minute {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}

func (r *Report) findNames(add finder) {
	for _, a := range r.Names {
		switch {
		case a.Problem == "":
		case a.Server != "":
			add(Warning, "name server "+printable(a.Server), "take it out of /etc/resolv.conf, or see why", "asked for %s: %s", printable(a.Name), printable(a.Problem))
		default:
			servers := "none that are known"
			if r.Host != nil && len(r.Host.Nameservers) > 0 {
				servers = printable(strings.Join(r.Host.Nameservers, ", "))
			}
			add(Wrong, "dns", "see the site's name servers: "+servers, "%s is not found: %s", printable(a.Name), printable(a.Problem))
		}
	}
}

func (r *Report) findHost(add finder) {
	h := r.Host
	if h == nil {
		return
	}
	for _, d := range h.Disks {
		if d.Size > 0 && float64(d.Available) < diskLow*float64(d.Size) {
			add(Warning, "disk "+printable(d.Path), "make room", "%d MiB of %d are left", d.Available>>20, d.Size>>20)
		}
	}
	if h.Memory > 0 && float64(h.Available) < memoryLow*float64(h.Memory) {
		add(Warning, "memory", "see who has it", "%d MiB of %d are left", h.Available>>20, h.Memory>>20)
	}
	if h.MaxFiles > 0 && float64(h.OpenFiles) > filesHigh*float64(h.MaxFiles) {
		add(Warning, "open files", "raise LimitNOFILE of the relay's unit", "%d of %d", h.OpenFiles, h.MaxFiles)
	}
	if n := float64(h.Processors); n > 0 && len(h.Load) > 1 && h.Load[1] > 4*n {
		add(Note, "load", "", "%.1f with %d processors", h.Load[1], h.Processors)
	}
	if r.Routes != nil && !slices.ContainsFunc(r.Routes, func(x Route) bool { return x.Destination == "0.0.0.0/0" || x.Destination == "::/0" }) {
		add(Note, "routes", "", "there is no default route")
	}
}

func (t Tried) find(add finder) {
	subject := "target " + printable(t.Target)
	switch {
	case t.Problem != "":
		add(Note, subject, "", "was not tried: %s", printable(t.Problem))
	case t.HTTP != nil && !t.HTTP.OK:
		add(Wrong, subject, advice[t.HTTP.Class], "%s", printable(t.HTTP.Problem))
	case t.HTTP != nil && t.HTTP.Status >= 500:
		add(Wrong, subject, "see the server's log", "answers %d", t.HTTP.Status)
	case t.Connect != nil && !t.Connect.OK:
		add(Wrong, subject, advice[t.Connect.Class], "%s", printable(t.Connect.Problem))
	case t.TLS != nil && !t.TLS.Verified:
		add(Warning, subject, "", "its certificate: %s", printable(t.TLS.Reason))
	case t.TLS != nil:
		expiry(add, subject, "its certificate", t.TLS.Left)
	}
}
