package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/acmetoml"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/diag"
	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/socks"
)

// config is private.toml. Paths in it are relative to the folder that it is in.
type config struct {
	// Relay is the public relay's address, "relay.example.com" or "relay.example.com:8443"; the port is 443
	// if none is given. With a list, the site keeps a session with each of the relays, and visitors reach
	// its services through any of them. Needed.
	Relay daemon.Strings `toml:"relay"`

	// Site is the name that the public relay knows this network by. Needed.
	Site string `toml:"site"`

	// Key is the file with the site's private key, made by `relay-private join` or `relay-private keygen`.
	// Whoever has it can pose as this site: it must be readable by its owner alone. Needed.
	Key string `toml:"key"`

	// CA is a PEM file with the authorities that may vouch for the public relay's certificate, for a relay
	// with a private CA. If empty, the system's authorities do. There is no way to skip the verification:
	// visitors' data would go to whoever answers.
	CA string `toml:"ca"`

	// Transport is how the site dials out. "wss" is WebSocket over TLS, which passes wherever HTTPS does and
	// costs least. "quic" is one QUIC link and nothing else: without UDP on the way there is no link. The
	// default, "auto", has the WebSocket links and tries QUIC beside them, for ever: for datagrams, and for
	// small streams while loss holds them up on the WebSocket. What is used and why is logged, and shown by
	// `tunnelctl status`.
	Transport string `toml:"transport"`

	// Links is how many WebSocket links the session with each relay has, 1 to 8. The first is for what people
	// wait for, the others are for streams that move much; each does it all when the others are lost. The
	// default is 2. More than that help a single site on a lossy path, if its kernel has no BBR.
	Links int `toml:"links"`

	// Proxy is the way out to the public relays: "http://HOST:PORT" or "https://HOST:PORT" of a proxy that
	// allows CONNECT, "socks5://HOST:PORT", each with USER:PASSWORD@ in front of HOST if need be (then this
	// file must be readable by the relay's user alone), or "none". If empty, the environment names it:
	// HTTPS_PROXY or else ALL_PROXY, and in NO_PROXY the relays that need none. Proxies look up the
	// relay's name themselves, and carry no QUIC.
	Proxy string `toml:"proxy"`

	// FFmpeg is the program of that name, which makes a snapshot of a camera that has none itself: it is given one
	// picture of the stream. If empty, it is looked for in PATH, and cameras have no such snapshots if it is not there; "none"
	// does not look.
	FFmpeg string `toml:"ffmpeg"`

	// Operators are the keys ("ed25519:…", as `tunnelctl operator key` prints them) of those operators who may reach the services, with
	// `tunnelctl forward` and the like: this relay checks them itself, so that somebody who has broken into the public relay does not get
	// in. "none" lets nobody in. By default whoever the public relay takes for an operator may. A change is taken up by SIGHUP, for
	// new connections.
	Operators daemon.Strings `toml:"operators"`

	// Discovery lets operators of the public relay have this one look for cameras on its networks, with `tunnelctl cameras`:
	// they see which devices there are and what they show, and may try a user and a password on them. The default is
	// false. `relay-private cameras` looks without it.
	Discovery bool `toml:"discovery"`

	// DiscoveryAddresses are asked by themselves, HOST or HOST:PORT, beside the networks that this machine is in: cameras
	// behind a router, which does not pass on what is for everybody.
	DiscoveryAddresses []string `toml:"discovery_addresses"`

	// Diagnostics lets operators of the public relay have this one tell of its machine and its networks, and try names, clocks,
	// servers and certificates from here: `tunnelctl diag`. It adds a service "diagnostics", which is for operators only, unless
	// there is one with target = "rest://site" that says otherwise. The default is false. A change of it is taken up by SIGHUP.
	Diagnostics bool `toml:"diagnostics"`

	// DiagnosticsTargets is whom they may have asked: "networks" (those that this machine is in, without its loopback),
	// "services" (the targets of the services), prefixes ("10.0.0.0/8"), addresses and names, with a port or without
	// ("10.0.0.5:443", "db.lan:5432"), "*.lan" for all names below lan, or "*". The default is ["networks", "services"]; [] is
	// nobody. Metadata services of clouds and link-local addresses are allowed by their own address alone.
	DiagnosticsTargets daemon.Strings `toml:"diagnostics_targets"`

	// DiagnosticsNTP are the servers, HOST or HOST:PORT, that tell operators how far the clock is off. They need not be among the
	// targets. The default is time.cloudflare.com; a network without a way out names its own.
	DiagnosticsNTP daemon.Strings `toml:"diagnostics_ntp"`

	// Socks says what operators may reach besides the services.
	Socks socksConfig `toml:"socks"`

	// DrainTimeout is how long streams may go on after SIGTERM. The default is "30s"; "0s" cuts them.
	DrainTimeout daemon.Duration `toml:"drain_timeout"`

	// State is a folder for what the relay makes itself, which is the certificates of [acme]. The default is "state",
	// beside this file.
	State string `toml:"state"`

	// Listen is for machines on the site's own network.
	Listen listenConfig `toml:"listen"`

	// ACME obtains certificates for the services with tls = "acme".
	ACME acmetoml.Config `toml:"acme"`

	// Service is what the site offers. Only the targets named here are ever dialled, whatever the
	// public relay asks for.
	Service []serviceConfig `toml:"service"`
}

// listenConfig is [listen].
type listenConfig struct {
	// TFTP is the address, on UDP, at which this relay answers TFTP itself, for the services that are published as tftp://: HOST:PORT,
	// or :PORT for all addresses; machines that boot ask port 69. It does so whether there is a link or not. Allow and Deny of the
	// services hold here, too, but not their limits. There are no passwords in TFTP: whoever reaches the port can read what is
	// published. The default is "", none. A change needs a restart.
	TFTP string `toml:"tftp"`

	// TFTPPorts is a range such as "40000-40999": each transfer is answered from a port of its own. The default is "": all are
	// answered from that of TFTP, which every client tried takes, and every firewall passes.
	TFTPPorts daemon.PortRange `toml:"tftp_ports"`
}

// serviceConfig is one [[service]].
type serviceConfig struct {
	// Name says which service this is in logs and to tunnelctl. Needed, unique.
	Name string `toml:"name"`

	// Publish is where visitors come in: https://HOST[/PATH], http://, wss://, ws://, for a camera rtsp:// or rtsps:// (a host
	// may begin with "*."), tls://HOST, tcp://:PORT, udp://:PORT, or tftp:///PATH, below which TFTP clients find files. The public relay decides whether the site may publish it. If empty,
	// the service can be reached by operators only, with `tunnelctl forward`.
	Publish string `toml:"publish"`

	// Target is where they end up: http://HOST:PORT, https://HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT,
	// unix:///PATH of a socket, file:///PATH of a folder, which this relay then serves itself, or rest://site, which is what
	// Diagnostics allows: published by https:// with users or client_ca, or to operators only. A server that
	// speaks HTTP/2 and nothing else, such as one of gRPC, is h2c://HOST:PORT, or h2://HOST:PORT with TLS. A camera is
	// rtsp://USER:PASSWORD@HOST:PORT/PATH?QUERY, or rtsps://, as its manual has it: this relay logs in there, and no visitor
	// sees where it is and who may. What is not a letter or a digit in USER and PASSWORD is better written as %XX. The files of
	// tftp:// publishes are in file:///PATH, at tftp://HOST:PORT/PATH, or at http:// or https://HOST:PORT/PATH. Needed.
	Target string `toml:"target"`

	// CA is a PEM file with the authorities that may vouch for the certificate of an https, h2 or rtsps target, and of
	// an https snapshot. If empty, the system's authorities do.
	CA string `toml:"ca"`

	// FanOut has the public relay ask for a camera's stream once, and show that to all who watch, who then begin with
	// a picture at once and cannot pause. Without it each player has a stream of its own, and the line to the site
	// carries them all.
	FanOut bool `toml:"fan_out"`

	// Deadline is how old a camera's video may be when it leaves the site, such as "2s": if the line is slower than the
	// camera, older video is dropped up to the next key frame, instead of being played late. The default is "0s": all
	// is sent, however late.
	Deadline daemon.Duration `toml:"deadline"`

	// UDP lets players have RTP over UDP from the public relay, if that has [listen] rtp. Otherwise they are told to
	// use TCP, which nearly all do by themselves.
	UDP bool `toml:"udp"`

	// Roaming lets the two connections of RTSP over HTTP come from different addresses, as they do from networks that
	// share several. What holds them together is a cookie alone then, which the player has chosen.
	Roaming bool `toml:"roaming"`

	// Snapshot is the http:// or https:// URL at which the camera has a picture, with user and password if need be; those of
	// the target are taken if it has none and is on the same host. Visitors find it at PUBLISH/snapshot.jpg.
	Snapshot string `toml:"snapshot"`

	// ProxyProtocol has the target told who the visitor is, by a PROXY protocol header of that version (1 or 2)
	// ahead of each connection to a tcp:// or unix:// target, or of each datagram (2 only). The target must
	// expect it. 0, the default: none. Targets of HTTP services learn it from X-Forwarded-For, but not those of
	// tls:// services: the public relay cannot write into their requests.
	ProxyProtocol int `toml:"proxy_protocol"`

	// TLS is "acme" for a tls:// service whose TLS ends at this relay, with a certificate that [acme] obtains: the
	// authority reaches this relay through the public one, which cannot read what visitors send. Wildcards need
	// [acme.dns]. If empty, TLS ends at the target, unless there is a Certificate.
	TLS string `toml:"tls"`

	// Certificate and CertificateKey are PEM files, for a tls:// service whose TLS ends at this relay: the chain, the
	// leaf first, and its key, which must not be readable by everybody. The target gets what is in the TLS. Both are
	// read again on SIGHUP.
	Certificate    string `toml:"certificate"`
	CertificateKey string `toml:"certificate_key"`

	// ALPN are the protocols that are offered to visitors of a tcp:// or unix:// target whose TLS ends at this
	// relay, the best first. The default is none. For other targets it is what they speak.
	ALPN []string `toml:"alpn"`

	// Inspect lets operators of the public relay see what visitors of an http:// or https:// publish and its target say to each
	// other, heads and the first 64 KiB of bodies, without passwords as far as their names tell, and send requests again. It is kept
	// in the public relay's memory for an hour at most. The default is false.
	Inspect bool `toml:"inspect"`

	filesConfig
	policyConfig
}

// settings are the values that a config stands for.
type settings struct {
	relays       []string // host:port
	site         string
	key          ed25519.PrivateKey
	roots        *x509.CertPool // nil: the system's
	outbound     *outbound
	transport    string
	links        int
	machine      string // see machineID
	ffmpeg       string // "": there is none
	drainTimeout time.Duration
	state        string
	acme         *acmetoml.Settings // nil without [acme]
	find         proxyFinder        // for authorities
	services     []private.Service
	listen       listenConfig

	operators []ed25519.PublicKey // nil: whoever the public relay takes for one
	discovery bool
	probed    []netip.AddrPort // of discovery, beside the networks

	allowed []diag.Rule // nil: the default
	ntp     []string

	socks *socks.Rules
}

// defaults is the config before anything is read into it.
func defaults() config {
	return config{Transport: private.TransportAuto, Links: 2, DrainTimeout: daemon.Duration(30 * time.Second), State: "state", DiagnosticsNTP: daemon.Strings{"time.cloudflare.com"}}
}

// load reads a configuration file. Its error holds every mistake in it.
func load(name string) (s *settings, err error) {
	c := defaults()
	err = daemon.ReadFile(name, &c, func(f *daemon.File) { s = c.settings(f, filepath.Dir(name)) })
	if err == nil {
		s.machine = machineID(name)
	}
	return s, err
}

// operators reads the keys of operators.
func (c *config) operators(f *daemon.File) (keys []ed25519.PublicKey) {
	if len(c.Operators) == 1 && c.Operators[0] == "none" {
		return []ed25519.PublicKey{nil} // whose key nobody has
	}
	if f.Has("operators") && len(c.Operators) == 0 {
		f.Addf("operators", "operators is empty: name keys, or \"none\" to let nobody in, or leave it out to let in whoever the public relay takes for an operator")
	}
	for i, text := range c.Operators {
		key, err := auth.ParsePublicKey(text)
		if err != nil {
			at := "operators"
			if e := fmt.Sprintf("operators[%d]", i); f.Has(e) {
				at = e
			}
			f.Addf(at, "operators: %q: %v: `tunnelctl operator key` prints it", text, err)
			continue
		}
		keys = append(keys, key)
	}
	return keys
}

// settings checks the config and reads the files that it names. Mistakes go to f.
func (c *config) settings(f *daemon.File, dir string) *settings {
	s := &settings{site: c.Site, transport: c.Transport, links: c.Links, drainTimeout: time.Duration(c.DrainTimeout), discovery: c.Discovery, listen: c.Listen}
	c.Listen.check(f)
	s.operators = c.operators(f)
	for i, a := range c.DiscoveryAddresses {
		at, err := onvif.ParseAddress(a)
		if err != nil {
			f.Addf(fmt.Sprintf("discovery_addresses[%d]", i), "discovery_addresses: %v", err)
		}
		s.probed = append(s.probed, at)
	}
	if len(c.Relay) == 0 {
		f.Addf("relay", "relay is missing: the public relay's address, such as \"relay.example.com\"")
	}
	for i, address := range c.Relay {
		a, err := relay.ParseAddress(address)
		if err != nil {
			at := "relay"
			if e := fmt.Sprintf("relay[%d]", i); f.Has(e) {
				at = e
			}
			f.Addf(at, "relay %v", err)
		}
		if slices.Contains(s.relays, a) {
			f.Addf(fmt.Sprintf("relay[%d]", i), "relay %q is listed twice", a)
		}
		s.relays = append(s.relays, a)
	}
	switch {
	case c.Site == "":
		f.Addf("site", "site is missing: the name that the public relay knows this network by")
	default:
		if err := relay.CheckName(c.Site); err != nil {
			f.Addf("site", "site %v", err)
		}
	}
	if c.Key == "" {
		f.Addf("key", "key is missing: the file made by `relay-private join` or `relay-private keygen`")
	} else {
		key, err := auth.ReadKey(daemon.InDir(dir, c.Key))
		if err != nil {
			f.Addf("key", "%v", err)
		}
		s.key = key
	}
	if c.CA != "" {
		s.roots = readCA(f, "ca", daemon.InDir(dir, c.CA))
	}
	switch c.Transport {
	case private.TransportAuto, private.TransportWSS:
	case private.TransportQUIC:
		if f.Has("links") {
			f.Addf("links", "links are WebSocket links: transport \"quic\" has one link for everything")
		}
	default:
		f.Addf("transport", "transport %q is none of auto, wss, quic", c.Transport)
	}
	if c.Links < 1 || c.Links > private.MaxLinks {
		f.Addf("links", "links %d: want 1 to %d", c.Links, private.MaxLinks)
	}
	s.state = daemon.InDir(dir, c.State)
	switch c.FFmpeg {
	case "none":
	case "":
		if name, err := exec.LookPath("ffmpeg"); err == nil {
			s.ffmpeg = name
		}
	default:
		name, err := exec.LookPath(daemon.InDir(dir, c.FFmpeg))
		if err != nil {
			f.Addf("ffmpeg", "ffmpeg: %v: name the program, or \"none\"", err)
		}
		s.ffmpeg = name
	}
	if f.Has("acme") {
		s.acme = c.ACME.Check(f, dir)
	}
	find, err := newProxyFinder(c.Proxy, environmentProxy)
	if err == nil {
		s.find = find
		s.outbound, err = newOutbound(s.relays, find)
	}
	if err != nil {
		f.Addf("proxy", "proxy: %v", err)
	} else if c.Transport == private.TransportQUIC && slices.ContainsFunc(s.relays, s.outbound.proxied) {
		f.Addf("transport", "transport \"quic\": the way out is a proxy, which carries no QUIC; use \"auto\" or \"wss\"")
	} else if strings.Contains(c.Proxy, "@") {
		keepSecret(f, "proxy", "proxy has a password")
	}
	names := make(map[string]bool)
	publishes := make(map[relay.Publish]string) // names of services
	hosts := make(map[string]private.Service)   // the first one that has a host by https or tls
	for i, one := range c.Service {
		at := fmt.Sprintf("service[%d]", i)
		svc := private.Service{Service: relay.Service{Name: one.Name, Inspect: one.Inspect}, ProxyProtocol: one.ProxyProtocol}
		var err error
		if one.Name == "" {
			f.Addf(at, "service without a name")
		} else if err = relay.CheckName(one.Name); err != nil {
			f.Addf(at+".name", "service %v", err)
		} else if names[one.Name] {
			f.Addf(at+".name", "service %q is defined twice", one.Name)
		}
		names[one.Name] = true
		if one.Publish != "" {
			if svc.Publish, err = relay.ParsePublish(one.Publish); err != nil {
				f.Addf(at+".publish", "%v", err)
			}
			for _, p := range addresses(svc.Publish) {
				if other, ok := publishes[p]; ok {
					f.Addf(at+".publish", "publish %q is taken by service %q", one.Publish, other)
					break
				}
				publishes[p] = one.Name
			}
			switch p := svc.Publish; p.Scheme {
			case "https", "wss", "rtsp", "rtsps", "tls":
				if first, ok := hosts[p.Host]; !ok {
					hosts[p.Host] = svc
				} else if (first.Publish.Scheme == "tls") != (p.Scheme == "tls") {
					f.Addf(at+".publish", "publish %q: service %q has this host by %s://, and TLS can end in one place only", one.Publish, first.Name, first.Publish.Scheme)
				}
			}
		}
		if one.Target == "" {
			f.Addf(at, "service %q without a target", one.Name)
		} else if svc.Target, err = relay.ParseTarget(one.Target); err != nil {
			f.Addf(at+".target", "%v", err)
		}
		if svc.Target.Scheme == siteTarget.Scheme {
			svc.Handler = http.NotFoundHandler() // until there is a relay
		}
		if svc.Target.Scheme == "file" {
			if info, err := os.Stat(svc.Target.Path); err != nil {
				f.Addf(at+".target", "target %q: %v", one.Target, err)
			} else if !info.IsDir() {
				f.Addf(at+".target", "target %q: not a folder", one.Target)
			}
		}
		if svc.Target.Scheme != "" {
			one.camera(f, at, &svc)
			if one.Publish == "" || svc.Publish.Scheme != "" {
				one.files(f, at, &svc)
			}
		}
		if one.CA != "" {
			if !slices.Contains([]string{"https", "h2", "rtsps"}, svc.Target.Scheme) && svc.Snapshot.Scheme != "https" {
				f.Addf(at+".ca", "ca is for https://, h2:// and rtsps:// targets, and https:// snapshots")
			}
			svc.RootCAs = readCA(f, at+".ca", daemon.InDir(dir, one.CA))
		}
		svc.TLS = one.end(f, at, dir, &svc, s.acme)
		if one.Publish == "" || svc.Publish.Scheme != "" {
			svc.Policy = one.policy(f, at, dir, svc.Publish.Scheme, svc.TLS != nil)
		}
		if relay.CheckName(one.Name) == nil && svc.Target.Scheme != "" && (one.Publish == "" || svc.Publish.Scheme != "") {
			if err := svc.Validate(); errors.Is(err, relay.ErrTargetPath) {
				f.Addf(at+".target", "%v", err)
			} else if errors.Is(err, relay.ErrInspect) {
				f.Addf(at+".inspect", "%v", err)
			} else if err != nil {
				f.Addf(at+".publish", "%v", err)
			}
		}
		s.services = append(s.services, svc)
	}
	c.checkDiagnostics(f, s)
	s.socks = c.Socks.check(f)
	return s
}

// addresses are what no other service may have if one is published as p: a way in for each scheme that leads to it.
func addresses(p relay.Publish) (list []relay.Publish) {
	switch {
	case p.IsZero() || p.IsPort() && p.Port == 0:
		return nil
	case p.IsPort() || p.Scheme == "tls" || p.Scheme == "tftp":
		return []relay.Publish{p}
	}
	for _, scheme := range []string{"https", "http"} {
		if relay.OnHTTP(p.Scheme, scheme == "https") {
			list = append(list, relay.Publish{Scheme: scheme, Host: p.Host, Path: p.Path})
		}
	}
	return list
}

// camera reads what one says of a camera into svc, whose target is known. Mistakes go to f; at is the service there.
func (one *serviceConfig) camera(f *daemon.File, at string, svc *private.Service) {
	if !svc.Target.IsCamera() {
		for _, key := range []string{"fan_out", "deadline", "udp", "roaming", "snapshot"} {
			if f.Has(at + "." + key) {
				f.Addf(at+"."+key, "%s is for rtsp:// and rtsps:// targets, not %s://", key, svc.Target.Scheme)
			}
		}
		return
	}
	svc.Camera = &relay.Camera{FanOut: one.FanOut, UDP: one.UDP, Roaming: one.Roaming}
	svc.Deadline = time.Duration(one.Deadline)
	if d := svc.Deadline; d != 0 && (d < private.MinDeadline || d > private.MaxDeadline) {
		f.Addf(at+".deadline", "deadline %v: want %v to %v, or 0s to send everything however late", d, private.MinDeadline, private.MaxDeadline)
		svc.Deadline = 0
	}
	if svc.Target.HasSecret() {
		keepSecret(f, at+".target", "target has a password")
	}
	if one.Snapshot == "" {
		return
	}
	var err error
	if svc.Snapshot, err = relay.ParseSnapshot(one.Snapshot); err != nil {
		f.Addf(at+".snapshot", "%v", err)
		return
	}
	if svc.Snapshot.HasSecret() {
		keepSecret(f, at+".snapshot", "snapshot has a password")
	}
	if svc.Snapshot.User == "" && svc.Snapshot.Host == svc.Target.Host {
		svc.Snapshot.User, svc.Snapshot.Password = svc.Target.User, svc.Target.Password
	}
}

// keepSecret complains if everybody may read f, which has something secret, as what says.
func keepSecret(f *daemon.File, at, what string) {
	if runtime.GOOS == "windows" {
		return
	}
	if info, err := os.Stat(f.Name); err == nil && info.Mode().Perm()&0o004 != 0 {
		f.Addf(at, "%s, and everybody may read this file: run chmod 600 %s", what, f.Name)
	}
}

// machineID is 16 bytes in hex that stay the same for this installation: another machine has others, and so has another
// configuration on this one.
func machineID(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		file = abs
	}
	host, _ := os.Hostname()
	machine, _ := os.ReadFile("/etc/machine-id")
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", host, machine, file))
	return hex.EncodeToString(sum[:16])
}

func readCA(f *daemon.File, at, name string) *x509.CertPool {
	pem, err := os.ReadFile(name)
	if err != nil {
		f.Addf(at, "ca: %v", err)
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		f.Addf(at, "ca: %s holds no PEM certificate", name)
	}
	return pool
}
