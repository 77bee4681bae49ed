package public

import (
	"context"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// Counters counts what happened on the HTTP listeners.
type Counters struct {
	Requests          uint64 // sent on to a site
	Answered          uint64 // by the relay itself: errors and redirects
	Rejected          uint64 // requests that were malformed or too slow
	Malformed         uint64 // responses that were
	TurnedAway        uint64 // connections beyond a limit
	Refused           uint64 // requests, connections and datagrams that the policy of a service did not let in
	HandshakesFailed  uint64
	HandshakesLimited uint64 // connections closed before one, as their address had too many
	Prefaces          uint64 // connections of proxies without a valid PROXY protocol header
}

func (c *Counters) add(o Counters) {
	c.Requests += o.Requests
	c.Answered += o.Answered
	c.Rejected += o.Rejected
	c.Malformed += o.Malformed
	c.TurnedAway += o.TurnedAway
	c.Refused += o.Refused
	c.HandshakesFailed += o.HandshakesFailed
	c.HandshakesLimited += o.HandshakesLimited
	c.Prefaces += o.Prefaces
}

// Status is the state of a Relay at one moment.
type Status struct {
	Draining  bool
	Visitors  int // connections
	Counters  Counters
	Listeners []Listener
	Sessions  []SessionStatus
	TFTP      *TFTPPort // nil: there is no listener for it
	Traffic   []Traffic // of sites that have been connected, in no order

	MaxVisitors, MaxPerAddress int             // the limits of admission
	Handshakes                 Handshakes      // TLS, of visitors and links
	Refused                    Troubles        // requests that the relay has answered by itself and that no service is to be blamed for
	Lags                       []time.Duration // until each loop answered; negative: it has not, and its part is missing
}

// Traffic is what all sessions of a site have carried so far, those that are over
// included.
type Traffic struct {
	Site           string
	Received, Sent uint64 // bytes of streams, from the site and to it
	Dropped        uint64 // see SessionStatus
}

func (t *Traffic) add(s tunnel.Stats) {
	t.Received += s.Received
	t.Sent += s.Sent
	t.Dropped += s.DatagramsDropped
}

// SessionStatus is a session of a site: one private relay.
type SessionStatus struct {
	Site      string
	ID        string // short, for people and Promote
	Active    bool   // it gets the visitors; otherwise it stands by
	Leaving   bool   // the private relay is shutting down
	Key       string
	Machine   string // of the private relay; "" if it does not tell
	Process   string
	Since     time.Time
	Remote    string        // address of the link that came last
	Software  string        // of the private relay
	Choice    string        // why it uses the transports that it does
	Lost      time.Time     // since when there is no link; zero: there is one
	RTT       time.Duration // of the best link; 0: not measured yet
	Links     []LinkStatus
	Carried   int // links that have carried the session so far
	Streams   int
	Received  uint64          // bytes of streams, from the site
	Sent      uint64          // and to it
	Buffered  int             // bytes
	Budget    int             // bytes that may be
	Dropped   uint64          // datagrams, here: they came faster than the links take them, or there was none
	Announced int             // services that the private relay offers
	Refused   []ServiceError  // of them; the first maxShown
	Services  []ServiceStatus // that are published: none of a stand-by
}

// LinkStatus is a link of a session.
type LinkStatus struct {
	Transport string        // "wss" or "quic"
	Role      string        // "interactive", "bulk", "datagram"; "none": it is being drained
	RTT       time.Duration // 0: not measured yet
	Remote    string
	Suspect   bool // something is owed, and nothing comes
	Since     time.Time
}

// ServiceError is why a service is not published, or would not be by a stand-by.
type ServiceError struct{ Name, Error string }

// Datagrams counts those of a udp service.
type Datagrams struct {
	Received uint64 // from visitors
	Sent     uint64 // to them
	Dropped  uint64 // at the port: there was a limit, or a full buffer
}

// ServiceStatus is a service that is published.
type ServiceStatus struct {
	Name     string
	Publish  string // URL; "": for operators only
	Target   string // scheme
	Visitors int    // now: connections, requests under way, or flows
	Total    uint64
	Received uint64 // bytes from visitors, but for the heads of requests
	Sent     uint64 // and to them

	Datagrams Datagrams
	Requests  Requests
	Durations Durations
	Errors    Troubles

	Camera *CameraStatus // nil: the service is none
	TFTP   *TFTPStatus   // nil: the service has no files
}

// Troubles counts what went wrong, by Words. The first one is what did not.
type Troubles [len(Words)]uint64

// Status asks the loops for their part. It must not be called on one. If the
// context ends before all have answered, the rest is missing.
func (r *Relay) Status(ctx context.Context) Status {
	r.prepare()
	st := Status{
		Draining: r.draining.Load(), Visitors: r.admission.connected(), Listeners: r.Listeners(),
		MaxVisitors: r.admission.total, MaxPerAddress: r.admission.perAddr, Lags: make([]time.Duration, len(r.loops)),
	}
	if r.tftp != nil {
		st.TFTP = &TFTPPort{r.tftp.Stats(), r.cache.Stats()}
	}
	r.mu.Lock()
	var sessions []*session
	var groups []*group
	for _, g := range r.groups {
		groups = append(groups, g)
		sessions = append(sessions, g.sessions...)
	}
	r.mu.Unlock()

	type part struct {
		loop       int
		lag        time.Duration
		counters   Counters
		handshakes Handshakes
		refused    Troubles
		sessions   []SessionStatus
		traffic    []Traffic
	}
	asking := time.Now()
	parts := make(chan part, len(r.loops))
	asked := 0
	for i, l := range r.loops {
		st.Lags[i] = -1
		if l.Post(func() {
			p := part{loop: i, lag: time.Since(asking), counters: l.counters, handshakes: l.handshakes, refused: l.refused}
			for _, s := range sessions {
				if s.loop == l && s.tun != nil {
					p.sessions = append(p.sessions, s.status())
				}
			}
			for _, g := range groups {
				if g.loop == l {
					p.traffic = append(p.traffic, g.traffic(sessions))
				}
			}
			parts <- p
		}) {
			asked++
		}
	}
	for range asked {
		select {
		case p := <-parts:
			st.Lags[p.loop] = p.lag
			st.Counters.add(p.counters)
			st.Handshakes.add(p.handshakes)
			for i, n := range p.refused {
				st.Refused[i] += n
			}
			st.Sessions = append(st.Sessions, p.sessions...)
			st.Traffic = append(st.Traffic, p.traffic...)
		case <-ctx.Done():
			return st
		}
	}
	return st
}

// traffic is the group's part of Status. On the loop.
func (g *group) traffic(sessions []*session) Traffic {
	t := g.past
	t.Site = g.site
	for _, s := range sessions {
		if s.group == g && s.tun != nil && !s.ended {
			t.add(s.tun.Stats())
		}
	}
	return t
}

// status is the session's part of Status. On the loop.
func (s *session) status() SessionStatus {
	t := s.tun.Stats()
	st := SessionStatus{
		Site: s.site, ID: s.shortID(), Active: s.group.active == s, Leaving: s.leaving,
		Key: s.key, Machine: s.machine, Process: s.process,
		Since: s.since, Remote: s.remote.String(), Software: s.software, Choice: s.choice, Lost: s.lostAt,
		RTT: t.RTT, Carried: t.Links, Streams: t.Streams, Received: t.Received, Sent: t.Sent, Buffered: t.Buffered, Budget: s.tun.Budget(), Dropped: t.DatagramsDropped,
		Announced: len(s.announced), Refused: s.refused,
	}
	for _, l := range s.tun.Links() {
		for _, c := range s.links {
			if l.Link == c.Link {
				st.Links = append(st.Links, LinkStatus{
					Transport: c.transport.String(), Role: l.Role.String(), RTT: l.RTT,
					Remote: c.remote.String(), Suspect: l.Suspect, Since: l.Since,
				})
			}
		}
	}
	for _, svc := range s.services {
		if svc.isFiles() {
			svc.measureAll(s.loop.since())
		}
		received, sent := svc.bytes()
		datagrams := svc.datagrams
		if svc.flows != nil {
			datagrams.Dropped += svc.flows.conn.Dropped()
		}
		one := ServiceStatus{
			Name: svc.name, Publish: svc.publish.String(), Target: svc.target,
			Visitors: svc.visitors, Total: svc.total, Received: received, Sent: sent,
			Datagrams: datagrams, Requests: svc.requests, Durations: svc.durations, Errors: svc.errors,
		}
		if (relay.Target{Scheme: svc.target}).IsCamera() {
			one.Camera = svc.cam.status(s.loop.since())
		}
		if svc.isFiles() {
			one.TFTP = svc.fileStatus(s.loop.since())
			if b := svc.folder.Library; b != nil {
				one.TFTP.Cached = b.Kept()
			}
		}
		st.Services = append(st.Services, one)
	}
	return st
}
