package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
)

// options are the flags of the command without a subcommand.
type options struct {
	config string
	check  bool

	// Instead of a file.
	relay, site, key, ca string
	publish              []string // URL=TARGET

	logLevel, logFormat string
}

// settings come from the file or from the flags, never from both.
func (o options) settings() (*settings, error) {
	flags := o.relay != "" || o.site != "" || o.key != "" || o.ca != "" || o.publish != nil
	switch {
	case o.config != "" && flags:
		return nil, daemon.UsageError("--config and --relay, --site, --key, --ca, --publish exclude each other")
	case o.config != "":
		return load(o.config)
	case !flags:
		return nil, daemon.UsageError("nothing to do: give --config FILE, or --relay, --site, --key and --publish, or a command (see --help)")
	}
	c := defaults()
	c.Site, c.Key, c.CA = o.site, o.key, o.ca
	if o.relay != "" {
		c.Relay = daemon.Strings{o.relay}
	}
	f := &daemon.File{Name: "command line"}
	for _, p := range o.publish {
		i := targetSeparator.FindStringIndex(p)
		if i == nil {
			if strings.Contains(p, "@") {
				p = "…" // it may be a password
			}
			f.Addf("publish", "--publish %q: want URL=TARGET, such as https://app.example.com=http://127.0.0.1:8080", p)
			continue
		}
		one := serviceConfig{Publish: p[:i[0]], Target: p[i[0]+1:]}
		if t, err := relay.ParseTarget(one.Target); err == nil && t.HasSecret() {
			f.Addf("publish", "--publish %s=%s: everybody on this machine sees the password of a command line: use a file, with --config", one.Publish, t)
			continue
		}
		one.Name = serviceName(one.Publish, c.Service)
		c.Service = append(c.Service, one)
	}
	s := c.settings(f, "")
	if err := f.Problems(); err != nil {
		return nil, err
	}
	s.machine = machineID(o.key)
	return s, nil
}

// targetSeparator is the = before the target's scheme; a URL may have others.
var targetSeparator = regexp.MustCompile(`=[a-z][a-z0-9+.-]*://`)

// serviceName makes a name of a publish URL: its host, or its scheme and port.
func serviceName(publish string, taken []serviceConfig) string {
	name := "service"
	if u, err := url.Parse(publish); err == nil && u.Hostname() != "" {
		name = u.Hostname()
	} else if err == nil && u.Port() != "" {
		name = u.Scheme + "-" + u.Port()
	} else if err == nil && u.Scheme == "tftp" {
		name = u.Scheme
	}
	if name[0] == '*' {
		name = "any" + name[1:]
	}
	unique := name
	for n := 2; slices.ContainsFunc(taken, func(s serviceConfig) bool { return s.Name == unique }); n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	return unique
}

// run runs the relay until ctx ends, it is told to stop, or a relay refuses it for good.
func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	s, err := o.settings()
	if err != nil {
		return err
	}
	if o.check {
		fmt.Fprintln(stdout, "ok")
		return nil
	}
	log, err := daemon.NewLogger(stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	for address, u := range s.outbound.proxies {
		log.Info("the way out is a proxy", "relay", address, "proxy", shown(u))
	}
	sockets, err := daemon.InheritedSockets()
	if err != nil {
		return err
	}
	core, err := evloop.New(evloop.Config{OnSlowTurn: daemon.SlowTurns(log)})
	if err != nil {
		return err
	}
	defer core.Close()
	certs, err := s.startACME(log)
	if err != nil {
		return err
	}
	defer certs.close()
	certs.use(s.services)
	var search discovery
	search.settings.Store(s)
	told := newDiagnostics(s, certs, log)
	defer told.close()
	told.use(s.services)
	r := &private.Relay{
		Core:         core,
		Relays:       s.relays,
		Site:         s.site,
		Key:          s.key,
		RootCAs:      s.roots,
		Transport:    s.transport,
		Links:        s.links,
		Machine:      s.machine,
		Services:     s.services,
		Operators:    s.operators,
		MaxFlows:     maxFlows(daemon.MaxFiles(), len(s.relays)),
		FFmpeg:       s.ffmpeg,
		DrainTimeout: s.drainTimeout,
		TFTP:         s.listen.TFTP,
		TFTPPorts:    s.listen.TFTPPorts,
		Inherited:    sockets.Files,
		Software:     "culvert " + version,
		Log:          log,
		Dial:         s.outbound.dialer(),
		Proxied:      s.outbound.proxied,
		Names:        certs.manage,
	}
	r.Discover = search.run
	var reach reachable
	reach.rules.Store(s.socks)
	r.Socks = reach.resolve
	told.begin(r, log)
	r.OnReady = func() {
		if unused := sockets.Unused(); len(unused) > 0 {
			log.Warn("inherited sockets that are no listener: what comes there waits for ever", "sockets", unused)
		}
		attrs := []any{"site", s.site, "relay", s.relays, "services", len(s.services)}
		if slices.ContainsFunc(r.Status().Relays, func(p private.PeerStatus) bool { return p.Standby }) {
			attrs = append(attrs, "standby", true)
		}
		daemon.Ready(log, attrs...)
	}
	running, stop := daemon.Signals(ctx, func() { reload(r, o, s, certs, &search, &reach, told, log) })
	defer stop()
	go daemon.Trim(running)
	alive, end := context.WithCancel(context.Background()) // and so while it drains
	defer end()
	go daemon.Watchdog(alive, &daemon.Probe{N: core.NumLoops(), Post: func(i int, f func()) bool { return core.Loop(i).Post(f) }})
	go daemon.Report(alive, func() string { return summary(running, r, certs) })
	stopping := context.AfterFunc(running, func() {
		log.Info("stopping: streams may finish", "timeout", s.drainTimeout)
		daemon.Stopping(s.drainTimeout)
	})
	defer stopping()
	return r.Run(running)
}

// summary is the service manager's line about the relay.
func summary(running context.Context, r *private.Relay, certs *certificates) string {
	st := r.Status()
	var b strings.Builder
	if running.Err() != nil {
		b.WriteString("draining; ")
	}
	for _, p := range st.Relays {
		switch {
		case p.Linked:
			fmt.Fprintf(&b, "linked to %s", p.Address)
			if p.Standby {
				b.WriteString(", standing by")
			}
			b.WriteString("; ")
		case p.Problem != "":
			fmt.Fprintf(&b, "no link to %s: %s; ", p.Address, p.Problem)
		default:
			fmt.Fprintf(&b, "dialling %s; ", p.Address)
		}
	}
	var open int64
	for _, s := range st.Services {
		open += s.Open
	}
	fmt.Fprintf(&b, "%d services, %d streams", len(st.Services), open)
	if t := st.TFTP; t != nil {
		fmt.Fprintf(&b, "; TFTP at %s: %d transfers", t.Address, t.Running)
	}
	if missing := certs.missing(); missing != "" {
		fmt.Fprintf(&b, "; no certificate for %s", missing)
	}
	return b.String()
}

// reload takes the services of the file as it is now. A bad file changes nothing.
func reload(r *private.Relay, o options, old *settings, certs *certificates, search *discovery, reach *reachable, told *diagnostics, log *slog.Logger) {
	daemon.Reloading()
	defer daemon.Reloaded()
	s, err := o.settings()
	if err == nil {
		certs.use(s.services)
		told.use(s.services)
		err = r.Reload(s.services)
	}
	if err != nil {
		log.Error("reload: the old configuration stays", "err", err)
		return
	}
	if !slices.Equal(s.relays, old.relays) || s.site != old.site || !s.key.Equal(old.key) || !s.roots.Equal(old.roots) || s.drainTimeout != old.drainTimeout || s.ffmpeg != old.ffmpeg || !s.outbound.equal(old.outbound) ||
		s.transport != old.transport || s.links != old.links || s.state != old.state || s.listen != old.listen || (s.acme == nil) != (old.acme == nil) || s.acme != nil && !s.acme.Equal(old.acme) {
		log.Warn("reload: a change of relay, site, key, ca, transport, links, proxy, state, listen, acme, ffmpeg or drain_timeout needs a restart")
	}
	certs.retry()
	r.SetOperators(s.operators)
	search.settings.Store(s)
	told.settings.Store(s)
	reach.rules.Store(s.socks)
	log.Info("reloaded", "services", len(s.services))
}

// maxFlows is how many flows each of the sessions may have so that half of the files are left for links and for the
// targets of other services: whoever makes up addresses has as many flows as they like. 0: the default.
func maxFlows(files, sessions int) int {
	if n := files / 2 / max(sessions, 1); files > 0 && n < 64<<10 {
		return max(n, 1)
	}
	return 0
}
