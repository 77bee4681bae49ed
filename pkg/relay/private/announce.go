package private

import (
	"errors"
	"time"

	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// The least and the longest wait before an announcement is made again that the relay has no room for.
const minReannounce, maxReannounce = time.Second, 30 * time.Second

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
	p.reannounce.Stop()
	s, err := p.session.Open(header)
	if err != nil {
		p.announceLater(err)
		return
	}
	offered := p.relay.services.Load()
	p.announcing, p.stale = true, false
	s.SetHandler(&announcement{peer: p, session: p.session, stream: s, offered: offered})
	s.Write(relay.Encode(offered.announcements()))
	s.CloseWrite()
}

// announcements is what is told of the services.
func (s *services) announcements() []relay.Announcement {
	list := make([]relay.Announcement, 0, len(s.list))
	for _, svc := range s.list {
		list = append(list, relay.Announcement{Name: svc.Name, Publish: svc.Publish.String(), TargetScheme: svc.Target.Scheme, Policy: svc.Policy, Camera: svc.Camera, Files: svc.Files, Inspect: svc.Inspect})
	}
	return list
}

// announcement is the stream on which the relay answers.
type announcement struct {
	peer     *peer
	session  *link.Session
	stream   *tunnel.Stream
	offered  *services
	reply    []byte // at most relay.MaxAnnounce
	answered bool
}

func (a *announcement) OnData(b []byte) int {
	if len(a.reply)+len(b) > relay.MaxAnnounce {
		a.stream.Reset(tunnel.CodeInternal)
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
	a.answered, a.peer.announceTries = true, 0
	a.peer.published = nil
	for _, reply := range list {
		if r.Announced != nil && r.services.Load() == a.offered {
			r.Announced(a.peer.address, reply.Name, reply.Addresses, reply.Error)
		}
		if reply.Error != "" {
			r.log.Warn("service refused", "relay", a.peer.address, "service", reply.Name, "err", reply.Error)
			continue
		}
		if svc := r.services.Load().byName[reply.Name]; svc != nil && svc.TLS != nil && svc.TLS.ACME {
			a.peer.published = append(a.peer.published, svc.Publish.Host)
		}
		r.log.Info("service up", "relay", a.peer.address, "service", reply.Name, "addresses", reply.Addresses)
	}
	a.peer.setNames()
	if r.OnReady != nil {
		r.ready.Do(r.OnReady)
	}
	a.over()
}

func (a *announcement) OnDrain() {}

func (a *announcement) OnClose(err error) {
	p := a.peer
	if a.answered || p.session != a.session {
		return
	}
	e, ok := errors.AsType[*tunnel.StreamError](err)
	if ok && e.Code != tunnel.CodeForbidden && (e.Remote || e.Code == tunnel.CodeMemory) {
		p.announcing = false
		p.announceLater(err)
		return
	}
	p.relay.log.Error("announce: the relay did not take the services", "relay", p.address, "err", err)
	a.over()
}

// announceLater tries again while the session lasts. The log hears of the first time in a row.
func (p *peer) announceLater(err error) {
	if p.announceTries == 0 {
		p.relay.log.Warn("announce: the relay did not take the services, trying again", "relay", p.address, "err", err)
	}
	p.loop.Arm(&p.reannounce, backoff(minReannounce, maxReannounce, p.announceTries), p.announce)
	p.announceTries++
}

// over lets the next announcement go.
func (a *announcement) over() {
	p := a.peer
	p.announcing = false
	if p.stale {
		p.announce()
	}
}
