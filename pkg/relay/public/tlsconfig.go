package public

import "crypto/tls"

// Protocols by ALPN (rfc7301) that visitors have the choice of. HTTP/1.0 is a name
// that some old clients send.
var (
	protosOwn   = []string{"http/1.1", "http/1.0"}       // links, joining and forwards are upgrades
	protosNames = []string{"h2", "http/1.1", "http/1.0"} // what sites publish
)

// newTLS is the config of all handshakes with visitors, over TCP and QUIC. It has the keys of the
// tickets; the others, which configFor chooses from, live for long and have none of their own.
func (r *Relay) newTLS() *tls.Config {
	if r.TLS == nil {
		return nil
	}
	cfg := r.TLS.Clone()
	cfg.DynamicRecordSizingDisabled = true // small records after each silence cost more than they gain
	cfg.NextProtos = protosOwn
	r.tlsOwn = cfg.Clone()
	r.tlsRTSP = cfg.Clone()
	r.tlsRTSP.NextProtos = nil // RTSP 1.0 has none, and whatever a player offers is ignored
	r.tlsRTSP.GetConfigForClient = r.configForRTSP
	cfg.NextProtos = protosNames
	cfg.GetConfigForClient = r.configFor
	return cfg
}

// configForRTSP is configFor for the listener of rtsps.
func (r *Relay) configForRTSP(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	cfg := r.routes.Load().asks.find(appendHost(nil, []byte(hello.ServerName)))
	if cfg != nil {
		cfg = cfg.Clone()
		cfg.NextProtos = nil
	}
	return cfg, nil
}

// configFor returns the config of a handshake with that hello; nil: the one that all begin with. It
// runs on goroutines of handshakes.
func (r *Relay) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if p := hello.SupportedProtos; len(p) == 1 && p[0] == challengeALPN && r.isChallenge(hello) {
		return r.proofTLS, nil
	}
	host := appendHost(nil, []byte(hello.ServerName))
	if len(host) > 0 && string(host) == r.Domain {
		return r.tlsOwn, nil
	}
	routes := r.routes.Load()
	cfg := routes.asks.find(host)
	if routes.split(string(host)) || len(host) == 0 && len(r.loops) > 1 {
		// A connection is on one loop. With HTTP/1.1 it moves from one request to the next. Without a server name, as
		// by an address, nobody knows before the first one where it should be, and 421 would be luck again.
		if cfg == nil {
			return r.tlsOwn, nil
		}
		cfg = cfg.Clone()
		cfg.NextProtos = protosOwn
	}
	return cfg, nil
}

// find returns the config of a host, or nil.
func (a asksFor) find(host []byte) *tls.Config {
	if len(a) == 0 {
		return nil
	}
	if cfg := a[string(host)]; cfg != nil {
		return cfg
	}
	return a[parent(string(host))]
}
