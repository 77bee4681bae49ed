package private

import (
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// announce tells the relay what the site offers. One announcement at a time is under way, so that the relay
// ends up with the newest.
func (p *peer) announce() {
	if p.session == nil || p.draining {
		return
	}
	if p.announcing {
		p.stale = true
		return
	}
	header, err := relay.Header{Kind: relay.KindAnnounce}.Append(nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	s, err := p.session.Open(header)
	if err != nil {
		p.relay.log.Error("announce", "relay", p.address, "err", err)
		return
	}
	list := make([]relay.Announcement, 0, len(p.relay.services.Load().list))
	for _, svc := range p.relay.services.Load().list {
		list = append(list, relay.Announcement{Name: svc.Name, Publish: svc.Publish.String(), TargetScheme: svc.Target.Scheme})
	}
	p.announcing, p.stale = true, false
	s.SetHandler(&announcement{peer: p, session: p.session, stream: s})
	s.Write(relay.Encode(list))
	s.CloseWrite()
}

// announcement is the stream on which the relay answers.
type announcement struct {
	peer     *peer
	session  *tunnel.Session
	stream   *tunnel.Stream
	reply    []byte // at most relay.MaxAnnounce
	answered bool
}

func (a *announcement) OnData(b []byte) int {
	if len(a.reply)+len(b) > relay.MaxAnnounce {
		a.stream.Reset(tunnel.CodeOverload)
		return len(b)
	}
	a.reply = append(a.reply, b...)
	return len(b)
}

func (a *announcement) OnEOF() {
	r := a.peer.relay
	list, err := relay.DecodeAnnounceReply(a.reply)
	if err != nil {
		r.log.Error("announce", "relay", a.peer.address, "err", err)
		a.stream.Reset(tunnel.CodeInternal)
		return
	}
	a.answered = true
	for _, reply := range list {
		if reply.Error != "" {
			r.log.Warn("service refused", "relay", a.peer.address, "service", reply.Name, "err", reply.Error)
			continue
		}
		r.log.Info("service up", "relay", a.peer.address, "service", reply.Name, "addresses", reply.Addresses)
	}
	if r.OnReady != nil {
		r.ready.Do(r.OnReady)
	}
	a.over()
}

func (a *announcement) OnDrain() {}

func (a *announcement) OnClose(err error) {
	if !a.answered && a.peer.session == a.session {
		a.peer.relay.log.Error("announce: the relay did not take the services", "relay", a.peer.address, "err", err)
		a.over()
	}
}

// over lets the next announcement go.
func (a *announcement) over() {
	p := a.peer
	p.announcing = false
	if p.stale {
		p.announce()
	}
}
