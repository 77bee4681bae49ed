package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/alert"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
	"culvert.dev/pkg/tftp"
)

// config is public.toml. Paths in it are relative to the folder that it is in.
type config struct {
	// Domain is the relay's own name: private relays dial it and join through it. No service may be
	// published under it. Needed.
	Domain string `toml:"domain"`

	// State is the folder of what the relay makes itself: the operators' token (admin.token), the sites
	// that have joined, and its own CA when it has no other certificate. It is made with mode 0700; whoever
	// can read it can do what operators can. Needed.
	State string `toml:"state"`

	// Listen has the addresses to listen on.
	Listen listenConfig `toml:"listen"`

	// ACME obtains certificates by itself, for the domain and for every host that is published by https.
	ACME acmeConfig `toml:"acme"`

	// TLS names a certificate that somebody else renews. Beside ACME it is for the names that it covers.
	// Without either the relay makes a CA and a certificate of its own in State, which private relays learn
	// of when they join, and visitors have to be told of.
	TLS tlsConfig `toml:"tls"`

	// Limits bound what visitors and sites may use.
	Limits limitsConfig `toml:"limits"`

	// Operators says where they may come from besides the admin listener, and what they may have.
	Operators operatorsConfig `toml:"operators"`

	// AccessLog has a line for what each visitor did.
	AccessLog accessConfig `toml:"access_log"`

	// Alerts says who is told of what an operator should look after.
	Alerts alertsConfig `toml:"alerts"`

	// DrainTimeout is how long visitors may go on after SIGTERM. The default is "30s"; "0s" cuts them.
	DrainTimeout daemon.Duration `toml:"drain_timeout"`

	// Site is a site whose key was made by hand, with `relay-private keygen`. Sites that join with a token
	// are kept in State and need no entry here; an entry wins over the state's of the same name.
	Site []siteConfig `toml:"site"`
}

// listenConfig is [listen]: HOST:PORT, with all addresses if the host is empty, any free port if the port is
// 0, and no listener at all if it is "".
type listenConfig struct {
	// HTTPS is for visitors and for private relays, told apart by name and path. The default is ":443".
	HTTPS string `toml:"https"`

	// QUIC is for private relays that link over QUIC, on UDP. They try the port that they know, so the default is
	// the address of HTTPS.
	QUIC string `toml:"quic"`

	// HTTP is for services published as http:// and ws://, and for cameras by RTSP over HTTP. The default is ":80".
	HTTP string `toml:"http"`

	// RTSP and RTSPS are for players of cameras, in the clear and with TLS: ":554" and ":322" are what they try if a URL
	// has no port. The default is "", none: players that have RTSP over HTTP come by HTTPS and HTTP, and so do browsers.
	RTSP  string `toml:"rtsp"`
	RTSPS string `toml:"rtsps"`

	// RTP is the address, on UDP, that pictures and sound come from for players of RTSP that will not have them by TCP, if
	// the camera's service has udp; RTCP is on the port above it. The default is "", none.
	RTP string `toml:"rtp"`

	// TFTP is the address, on UDP, for services published as tftp://: ":69" is what machines that boot try. The default is
	// "", none. There are no passwords in TFTP: whoever reaches the port can read what is published, so name an address that
	// not everybody reaches, or give services an allow list.
	TFTP string `toml:"tftp"`

	// TFTPPorts is a range of ports, such as "40000-40999", one of which each transfer is answered from, as servers of old do. The
	// default is "": all is answered from the port of TFTP, which every client tried takes, and every firewall passes.
	TFTPPorts daemon.PortRange `toml:"tftp_ports"`

	// ProxyProtocol lists proxies in front of the relay, such as "10.0.0.7" or "10.0.0.0/8": load balancers that
	// take visitors first. A connection from there, to any TCP listener, has to begin with a PROXY protocol
	// header (version 1 or 2), and the visitor is who the header says. List nobody else: whoever is in the
	// list can pretend to be anybody.
	ProxyProtocol []string `toml:"proxy_protocol"`

	// Admin is for tunnelctl, metrics and debugging. It speaks HTTP without TLS: the address should be a
	// loopback one. The default is "127.0.0.1:7070".
	Admin string `toml:"admin"`
}

// tlsConfig is [tls]. Both files are read again on SIGHUP.
type tlsConfig struct {
	// Certificate is a PEM file with the chain, the leaf first. It should name the domain and the hosts
	// that sites publish, as wildcards where possible.
	Certificate string `toml:"certificate"`

	// Key is the PEM file of its private key.
	Key string `toml:"key"`
}

// limitsConfig is [limits]. 0 takes the default, unless the field says otherwise.
type limitsConfig struct {
	// Visitors is how many connections may be open; others are told to come back (503) or closed.
	// The default is 262144. The process needs as many file descriptors.
	Visitors int `toml:"visitors"`

	// VisitorsPerAddress is the same for one address (for IPv6, one /64). The default is 16384: a school or
	// a reverse proxy may be behind one address.
	VisitorsPerAddress int `toml:"visitors_per_address"`

	// HandshakesPerAddress is how many TLS handshakes one address (for IPv6, one /64) may begin in a minute, a
	// fifth of them at once; connections beyond that are closed before they cost anything. The default is 3000:
	// a thousand people who arrive behind one address in one minute, or 5 % of a processor. Raise it for
	// larger networks, for a load balancer without proxy_protocol, and for benchmarks.
	HandshakesPerAddress int `toml:"handshakes_per_address"`

	// StreamsPerSite is how many streams one session may have. The default is 131072.
	StreamsPerSite int `toml:"streams_per_site"`

	// Flows is how many flows one udp:// service may have: visitors that have sent something in the last two
	// minutes. The one that has been silent for longest makes room for the next, first one that was never
	// answered. The default is 16384. Each is a file descriptor of the private relay.
	Flows int `toml:"flows"`

	// FlowsPerAddress is the same for one address (for IPv6, one /64). The default is 256. A resolver asks each
	// question from another port, which is another flow.
	FlowsPerAddress int `toml:"flows_per_address"`

	// SessionMemory is how many bytes the streams of one session may keep here: received and not taken by
	// the visitor, or sent and not confirmed by the site. A quarter as much is for what is kept of its cameras. The
	// default is 268435456 (256 MiB).
	SessionMemory int `toml:"session_memory"`

	// TFTPTransfers is how many files may be on the way by TFTP at a time, in all. Others are told to come back. The
	// default is 16384.
	TFTPTransfers int `toml:"tftp_transfers"`

	// TFTPTransfersPerAddress is the same for one address (for IPv6, one /64). The default is 256: a rack of machines may
	// be behind one.
	TFTPTransfersPerAddress int `toml:"tftp_transfers_per_address"`

	// TFTPCache is how many bytes of files read by TFTP are kept, so that an image which many machines ask for crosses the link
	// once. Each time it is asked whether the site's has changed. The default is 268435456 (256 MiB); 0: nothing is kept, and
	// each machine has a stream of its own.
	TFTPCache int64 `toml:"tftp_cache"`

	// TFTPBlock is the most bytes of a block (blksize) that clients of TFTP may have, 8 to 65464. The default is 0: what reaches the
	// client in one packet. Fragments are lost by many routers and boot loaders.
	TFTPBlock int `toml:"tftp_block"`
}

// operatorsConfig is [operators].
type operatorsConfig struct {
	// Domain has the API, and the page for browsers, served at https://DOMAIN/ too, for whoever has a token: what else
	// there is on the listener of visitors. The default is false: from elsewhere operators come by ssh -L then.
	Domain bool `toml:"domain"`

	// Expose has the patterns of what operators, who are no admins, may publish from where they are with `tunnelctl
	// expose`, such as "https://*.try.example.com". The default is none: whoever may publish a name can have everybody
	// believe to be there.
	Expose []string `toml:"expose"`

	// Sockets is how many WebSockets of the API one operator may have open. The default is 1024.
	Sockets int `toml:"sockets"`

	// Requests has the last requests of visitors kept in memory, for a day at most, with the addresses that they came from, and shown to
	// operators, viewers included. The default is true; without them Inspect does nothing either.
	Requests bool `toml:"requests"`

	// Inspect has heads and bodies of requests kept in memory, for an hour at most, of services whose private.toml says inspect = true,
	// so that operators may look into them and send them again. The default is true: it is the site that decides.
	Inspect bool `toml:"inspect"`
}

// accessConfig is [access_log].
type accessConfig struct {
	// File gets one line of JSON for each request, connection and flow, when it is over. A path is relative to State,
	// the folder that the relay may write to; "stdout" is standard output. The default is "", no access log: it has the
	// addresses of visitors, which in many countries are not to be kept without a reason. SIGHUP opens the file anew.
	File string `toml:"file"`

	// MaxSize is how many bytes a file may have before it is moved to FILE.1, FILE.1 to FILE.2, and so on. 0: any number,
	// because logrotate, say, takes care of it. The default is 104857600 (100 MiB).
	MaxSize int64 `toml:"max_size"`

	// Keep is how many of these older files are kept. The default is 5.
	Keep int `toml:"keep"`

	// Query has the query of a request logged, and that of its Referer: they often have secrets in them.
	Query bool `toml:"query"`

	// Agent has User-Agent and Referer logged.
	Agent bool `toml:"agent"`
}

// siteConfig is one [[site]].
type siteConfig struct {
	// Name is what the site calls itself. Needed, unique.
	Name string `toml:"name"`

	// Key is the site's public key, "ed25519:...", or a list: one for each of its private relays, of which
	// one gets the visitors and the others stand by. Needed.
	Key daemon.Strings `toml:"key"`

	// Publish has the patterns of what the site may publish, such as "https://*.example.com",
	// "http://files.example.com", "tcp://:15000-15999". What matches none of them is refused. Needed.
	Publish []string `toml:"publish"`
}

// settings are the values that a config stands for.
type settings struct {
	config
	state       string // absolute or relative to the working directory
	certificate *tls.Certificate
	acme        *acmeSettings // nil without [acme]
	senders     []alert.Sender
	proxies     []netip.Prefix
	sites       []public.Site
	expose      []relay.Pattern
}

// defaults is the config before anything is read into it.
func defaults() config {
	return config{
		Listen: listenConfig{HTTPS: ":443", QUIC: ":443", HTTP: ":80", Admin: "127.0.0.1:7070"},
		Limits: limitsConfig{
			Visitors: 262_144, VisitorsPerAddress: 16_384, HandshakesPerAddress: 3000, StreamsPerSite: 131_072,
			Flows: 16_384, FlowsPerAddress: 256, SessionMemory: 256 << 20,
			TFTPTransfers: 16_384, TFTPTransfersPerAddress: 256, TFTPCache: 256 << 20,
		},
		Operators:    operatorsConfig{Sockets: 1024, Requests: true, Inspect: true},
		AccessLog:    accessConfig{MaxSize: 100 << 20, Keep: 5},
		Alerts:       defaultAlerts(),
		DrainTimeout: daemon.Duration(30 * time.Second),
	}
}

// load reads a configuration file. Its error holds every mistake in it.
func load(name string) (*settings, error) {
	s := &settings{config: defaults()}
	err := daemon.ReadFile(name, &s.config, func(f *daemon.File) { s.check(f, filepath.Dir(name)) })
	return s, err
}

// checkText says what is wrong with a file that would take the place of the one at name, which running are the settings of.
func checkText(name, text string, running *settings) *admin.ConfigReport {
	s := &settings{config: defaults()}
	err := daemon.Decode(filepath.Base(name), []byte(text), &s.config, func(f *daemon.File) { s.check(f, filepath.Dir(name)) })
	report := &admin.ConfigReport{OK: err == nil}
	var all daemon.Problems
	switch {
	case errors.As(err, &all):
		for _, p := range all {
			report.Mistakes = append(report.Mistakes, p.Error())
		}
	case err != nil:
		report.Mistakes = []string{err.Error()}
	default:
		report.Restart = s.needRestart(running)
	}
	return report
}

// needRestart are the tables of s that a relay which runs with others takes up when it starts.
func (s *settings) needRestart(running *settings) (list []string) {
	for _, part := range []struct {
		name    string
		changed bool
	}{
		{"domain", s.Domain != running.Domain},
		{"state", s.state != running.state},
		{"[listen]", !reflect.DeepEqual(s.Listen, running.Listen)},
		{"[limits]", s.Limits != running.Limits},
		{"[access_log]", s.AccessLog != running.AccessLog},
		{"[operators] domain and sockets", s.Operators.Domain != running.Operators.Domain || s.Operators.Sockets != running.Operators.Sockets},
		{"[operators] requests and inspect", s.Operators.Requests != running.Operators.Requests || s.Operators.Inspect != running.Operators.Inspect},
	} {
		if part.changed {
			list = append(list, part.name)
		}
	}
	return list
}

// check completes the settings and reads the files they name. Mistakes go to f.
func (s *settings) check(f *daemon.File, dir string) {
	switch {
	case s.Domain == "":
		f.Addf("domain", "domain is missing: the relay's own name, such as \"relay.example.com\"")
	case strings.ContainsAny(s.Domain, "/: *") || s.Domain != strings.ToLower(s.Domain):
		f.Addf("domain", "domain %q: want a name in lower case, without scheme, port or wildcard", s.Domain)
	}
	if s.State == "" {
		f.Addf("state", "state is missing: a folder for what the relay makes itself, such as \"/var/lib/culvert\"")
	}
	s.state = daemon.InDir(dir, s.State)

	s.checkListen(f)
	s.senders = s.Alerts.check(f, dir)
	if f.Has("acme") {
		s.acme = s.ACME.check(f, dir, s.Listen.HTTP != "")
	}
	switch {
	case s.TLS.Certificate != "" && s.TLS.Key != "":
		c, err := tls.LoadX509KeyPair(daemon.InDir(dir, s.TLS.Certificate), daemon.InDir(dir, s.TLS.Key))
		if err != nil {
			f.Addf("tls.certificate", "certificate: %v", err)
		}
		s.certificate = &c
	case s.TLS.Certificate != "":
		f.Addf("tls", "[tls] has a certificate and no key")
	case s.TLS.Key != "":
		f.Addf("tls", "[tls] has a key and no certificate")
	}
	for _, l := range []struct {
		at    string
		limit *int
		def   int
	}{
		{"limits.visitors", &s.Limits.Visitors, defaults().Limits.Visitors},
		{"limits.visitors_per_address", &s.Limits.VisitorsPerAddress, defaults().Limits.VisitorsPerAddress},
		{"limits.handshakes_per_address", &s.Limits.HandshakesPerAddress, defaults().Limits.HandshakesPerAddress},
		{"limits.streams_per_site", &s.Limits.StreamsPerSite, defaults().Limits.StreamsPerSite},
		{"limits.flows", &s.Limits.Flows, defaults().Limits.Flows},
		{"limits.flows_per_address", &s.Limits.FlowsPerAddress, defaults().Limits.FlowsPerAddress},
		{"limits.session_memory", &s.Limits.SessionMemory, defaults().Limits.SessionMemory},
		{"limits.tftp_transfers", &s.Limits.TFTPTransfers, defaults().Limits.TFTPTransfers},
		{"limits.tftp_transfers_per_address", &s.Limits.TFTPTransfersPerAddress, defaults().Limits.TFTPTransfersPerAddress},
		{"operators.sockets", &s.Operators.Sockets, defaults().Operators.Sockets},
	} {
		if *l.limit < 0 {
			f.Addf(l.at, "%s is negative", l.at)
		} else if *l.limit == 0 {
			*l.limit = l.def
		}
	}
	if s.Limits.TFTPCache < 0 {
		f.Addf("limits.tftp_cache", "limits.tftp_cache is negative; 0 keeps nothing")
	}
	if n := s.Limits.TFTPBlock; n != 0 && (n < tftp.MinBlock || n > tftp.MaxBlock) {
		f.Addf("limits.tftp_block", "limits.tftp_block is %d, not between %d and %d, or 0 for what reaches the client in one packet", n, tftp.MinBlock, tftp.MaxBlock)
	}
	for i, pattern := range s.Operators.Expose {
		p, err := relay.ParsePattern(pattern)
		if err != nil {
			f.Addf(fmt.Sprintf("operators.expose[%d]", i), "%v", err)
		}
		s.expose = append(s.expose, p)
	}
	if s.AccessLog.MaxSize < 0 {
		f.Addf("access_log.max_size", "access_log.max_size is negative")
	}
	if s.AccessLog.Keep < 0 || s.AccessLog.Keep > maxKept {
		f.Addf("access_log.keep", "access_log.keep is %d, not between 0 and %d", s.AccessLog.Keep, maxKept)
	}
	if name := s.AccessLog.File; name != "" && name != stdoutLog {
		s.AccessLog.File = daemon.InDir(s.state, name)
	}
	names := make(map[string]bool)
	for i, one := range s.Site {
		at := fmt.Sprintf("site[%d]", i)
		if one.Name == "" {
			f.Addf(at, "site without a name")
			continue
		} else if err := relay.CheckName(one.Name); err != nil {
			f.Addf(at+".name", "site %v", err)
		} else if names[one.Name] {
			f.Addf(at+".name", "site %q is defined twice", one.Name)
		}
		names[one.Name] = true
		made := public.Site{Name: one.Name, Keys: one.Key}
		if len(one.Key) == 0 {
			f.Addf(at, "site %q without a key: `relay-private keygen FILE` makes one and prints its public half", one.Name)
		}
		for j, key := range one.Key {
			if _, err := auth.ParsePublicKey(key); err != nil {
				where := at + ".key"
				if len(one.Key) > 1 {
					where = fmt.Sprintf("%s[%d]", where, j)
				}
				f.Addf(where, "%v", err)
			}
		}
		if len(one.Publish) == 0 {
			f.Addf(at, "site %q may publish nothing: publish is missing, such as [\"https://*.example.com\"]", one.Name)
		}
		for j, pattern := range one.Publish {
			p, err := relay.ParsePattern(pattern)
			if err != nil {
				f.Addf(fmt.Sprintf("%s.publish[%d]", at, j), "%v", err)
			}
			made.Publish = append(made.Publish, p)
		}
		s.sites = append(s.sites, made)
	}
}

// checkListen checks the addresses.
func (s *settings) checkListen(f *daemon.File) {
	for _, l := range []struct{ at, address string }{
		{"listen.https", s.Listen.HTTPS}, {"listen.quic", s.Listen.QUIC}, {"listen.http", s.Listen.HTTP},
		{"listen.rtsp", s.Listen.RTSP}, {"listen.rtsps", s.Listen.RTSPS}, {"listen.rtp", s.Listen.RTP},
		{"listen.tftp", s.Listen.TFTP}, {"listen.admin", s.Listen.Admin},
	} {
		if l.address == "" {
			continue
		}
		_, port, err := net.SplitHostPort(l.address)
		if n, numErr := strconv.Atoi(port); err != nil || numErr != nil || n < 0 || n > 65535 {
			f.Addf(l.at, "%s %q: want HOST:PORT or :PORT", l.at, l.address)
		} else if l.at == "listen.rtp" && n == 65535 {
			f.Addf(l.at, "%s %q: RTCP is on the port above it, which there is none", l.at, l.address)
		}
	}
	if s.Listen.RTP != "" && s.Listen.RTSP == "" {
		f.Addf("listen.rtp", "listen.rtp is for players that come by rtsp, which is not listened for")
	}
	for i, text := range s.Listen.ProxyProtocol {
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil || p.Addr().Zone() != "" || p.Addr().Is4In6() {
			f.Addf(fmt.Sprintf("listen.proxy_protocol[%d]", i), "proxy_protocol %q: want an address or a prefix, such as \"10.0.0.0/8\"", text)
		}
		s.proxies = append(s.proxies, p)
	}
	if s.Listen.HTTPS == "" && s.Domain != "" {
		f.Addf("listen.https", "listen.https is empty: private relays would have no way in")
	}
	if !f.Has("listen.quic") {
		s.Listen.QUIC = s.Listen.HTTPS
	}
	if ports := s.Listen.TFTPPorts; s.Listen.TFTP == "" && ports != (daemon.PortRange{}) {
		f.Addf("listen.tftp_ports", "tftp_ports: listen.tftp is missing, where requests come in")
	} else if ports.Has(s.Listen.TFTP) {
		f.Addf("listen.tftp_ports", "tftp_ports: the port of listen.tftp is in the range")
	}
}

// stdoutLog is the name of the access log that is no file.
const stdoutLog = "stdout"

// maxKept bounds the older files of the access log: each is moved when one is full.
const maxKept = 1000
