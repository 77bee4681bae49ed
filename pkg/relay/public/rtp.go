package public

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// RTP over UDP is for players that cannot do otherwise, of cameras whose owner says so. Between the relays, and in the hub,
// there are interleaved frames as ever: here they become datagrams, and what the player sends by UDP becomes frames.
//
// Datagrams go to the address of the player's connection only, so that nobody can have them sent to somebody
// else, and to ports that are not those of servers. So that they leave from where the player expects them, its connection
// must be one of its own and in the clear: rtsps would promise what UDP does not keep.

const (
	rtpSilence  = 60 * time.Second // without RTCP and without a request, of a player with UDP
	minRTPPort  = 1024             // of a player
	maxRTPSize  = 4096             // bytes of a datagram of a player that is taken
	maxRTPAhead = 16               // datagrams of a track on the way to its loop
)

// rtpPorts are the two UDP sockets, for RTP and RTCP. Every loop has both.
type rtpPorts struct {
	// Immutable.
	relay *Relay
	ports [2]uint16
	local bool // whether the address of ours to send from has to be said
	conns map[*loop]*[2]*evloop.PacketConn

	mu     sync.Mutex
	tracks [2]map[netip.AddrPort]*rtpTrack // by where their datagrams come from
	of     map[netip.Addr]int              // tracks by relay.Source
}

// rtpTrack is a track that a player gets by UDP.
type rtpTrack struct {
	// Immutable.
	ports *rtpPorts
	loop  *loop
	to    [2]evloop.PacketAddr
	ahead atomic.Int32 // datagrams on the way to loop

	// Owned by loop.
	player   *player // nil: it is over
	channels [2]uint8
}

// listenRTP opens both sockets.
func (r *Relay) listenRTP() error {
	host, port, err := net.SplitHostPort(r.RTP)
	if err != nil {
		return err
	}
	t := &rtpPorts{relay: r, conns: make(map[*loop]*[2]*evloop.PacketConn), of: make(map[netip.Addr]int)}
	t.tracks[0], t.tracks[1] = make(map[netip.AddrPort]*rtpTrack), make(map[netip.AddrPort]*rtpTrack)
	pair, err := listenPair(host, port)
	if err != nil {
		return err
	}
	defer pair[0].Close()
	defer pair[1].Close()
	at := pair[0].LocalAddr().(*net.UDPAddr).AddrPort()
	t.ports = [2]uint16{at.Port(), at.Port() + 1}
	t.local = at.Addr().IsUnspecified()
	for _, l := range r.loops {
		t.conns[l] = new([2]*evloop.PacketConn)
	}
	for i, nc := range pair {
		f, err := nc.File() // one socket, of which each loop has a descriptor
		if err != nil {
			return fmt.Errorf("the loops cannot share the socket: %w", err)
		}
		defer f.Close()
		for _, l := range r.loops {
			c, err := l.ListenPacketFile(f, func(b []byte, from evloop.PacketAddr) { t.receive(l, i, b, from.Remote) })
			if err != nil {
				t.Close()
				return err
			}
			t.conns[l][i] = c
		}
	}
	r.rtp = t
	r.mu.Lock()
	r.listeners = append(r.listeners, &Listener{Name: "rtp", Addr: net.UDPAddrFromAddrPort(at), ln: nopCloser{}})
	r.mu.Unlock()
	return nil
}

// nopCloser is for sockets whose users outlive the listening: they end with the Core.
type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// listenPair binds a port and the one above it. Any port will do if it is 0.
func listenPair(host, port string) (pair [2]*net.UDPConn, err error) {
	bind := func(port string) (*net.UDPConn, error) {
		c, err := net.ListenPacket("udp", net.JoinHostPort(host, port))
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil
	}
	for range 20 {
		if pair[0], err = bind(port); err != nil {
			return pair, err
		}
		at := pair[0].LocalAddr().(*net.UDPAddr).Port
		if pair[1], err = bind(strconv.Itoa(at + 1)); err == nil {
			return pair, nil
		}
		pair[0].Close()
		if port != "0" {
			break
		}
	}
	return pair, err
}

// Close closes the sockets of all loops. It must not be called on one.
func (t *rtpPorts) Close() {
	for l, conns := range t.conns {
		l.Post(func() {
			for _, c := range conns {
				if c != nil {
					c.Close()
				}
			}
		})
	}
}

// receive takes a datagram on l, which may not be the loop of the player.
func (t *rtpPorts) receive(l *loop, i int, b []byte, from netip.AddrPort) {
	if len(b) > maxRTPSize {
		return
	}
	t.mu.Lock()
	track := t.tracks[i][from]
	t.mu.Unlock()
	switch {
	case track == nil:
	case track.loop == l:
		track.take(i, b)
	case track.ahead.Add(1) <= maxRTPAhead:
		b = bytes.Clone(b)
		track.loop.Post(func() {
			track.ahead.Add(-1)
			track.take(i, b)
		})
	default:
		track.ahead.Add(-1)
	}
}

// take passes on a datagram of the player, as a frame.
func (t *rtpTrack) take(i int, b []byte) {
	p := t.player
	if p == nil {
		return
	}
	p.heard = t.loop.since()
	p.count(len(b))
	p.packets.Received++
	p.service.datagrams.Received++
	if !p.playing || isPunch(i, b) || p.server == nil || p.server.full() {
		return
	}
	l := t.loop
	l.up = append(rtsp.AppendFrameHead(l.up[:0], t.channels[i], len(b)), b...)
	p.server.take(l.up)
	l.up = l.up[:0]
}

// isPunch reports whether a datagram is there for what translates addresses on the way, before PLAY as a rule. Some
// cameras end the connection if they get such a thing on it.
func isPunch(i int, b []byte) bool {
	if i == 0 {
		return len(b) <= 12 || b[0]>>6 != 2 // a header without a payload at most, rfc3550#section-5.1
	}
	return len(b) < 8 || b[0]>>6 != 2 || b[1] < 192 || b[1] > 223 // rfc5761#section-4
}

var errRTPPorts = errors.New("the ports of a track are in use")

// enter begins a track of a player.
func (t *rtpPorts) enter(p *player, ports rtsp.Pair) (*rtpTrack, error) {
	conn, addr := p.end.(*evloop.Conn), p.client.addr.Addr().Unmap()
	track := &rtpTrack{ports: t, loop: p.loop, player: p}
	for i, port := range ports {
		track.to[i].Remote = netip.AddrPortFrom(addr, port)
		if t.local {
			track.to[i].Local = conn.LocalAddr().Addr().Unmap()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	source := relay.Source(addr)
	if t.of[source] >= t.relay.MaxFlowsPerAddress || t.tracks[0][track.to[0].Remote] != nil || t.tracks[1][track.to[1].Remote] != nil {
		return nil, errRTPPorts
	}
	t.of[source]++
	for i := range t.tracks {
		t.tracks[i][track.to[i].Remote] = track
	}
	return track, nil
}

// leave ends a track. On its loop.
func (t *rtpTrack) leave() {
	if t.player == nil {
		return
	}
	t.player = nil
	t.ports.mu.Lock()
	defer t.ports.mu.Unlock()
	drop(t.ports.of, relay.Source(t.to[0].Remote.Addr()))
	for i := range t.ports.tracks {
		delete(t.ports.tracks[i], t.to[i].Remote)
	}
}

// takesUDP reports whether the player may have a track by UDP.
func (p *player) takesUDP() bool {
	conn, ok := p.end.(*evloop.Conn)
	return ok && p.loop.relay.rtp != nil && p.service.camera.UDP && !p.client.secure && conn.RemoteAddr().Addr() == p.client.addr.Addr()
}

// byUDP makes of a transport by UDP, which a SETUP asks for, the one that the server is asked for. It reports false if
// the player cannot have it.
func (p *player) byUDP(t rtsp.Transport, f *flight) (rtsp.Transport, bool) {
	ports := t.ClientPort
	if t.TCP || t.Multicast || t.Protocol != "RTP/AVP" || !t.HasClientPort || ports[0] < minRTPPort || ports[1] < minRTPPort || ports[0] == ports[1] || !p.takesUDP() {
		return t, false
	}
	track, err := p.loop.relay.rtp.enter(p, ports)
	if err != nil {
		return t, false
	}
	f.track = track
	n := p.setups
	for _, f := range p.flight {
		if f.method == methodSetup {
			n++
		}
	}
	first := uint16(2 * n % 256)
	return rtsp.Transport{Protocol: t.Protocol, TCP: true, Unicast: true, Interleaved: rtsp.Pair{first, first + 1}, HasInterleaved: true}, true
}

// answered makes of the transport that the server has given the one that the player gets, or reports false if
// it is not good.
func (t *rtpTrack) answered(given rtsp.Transport) (rtsp.Transport, bool) {
	if !given.TCP || !given.HasInterleaved || given.Interleaved[0] == given.Interleaved[1] {
		return given, false
	}
	t.channels = [2]uint8{uint8(given.Interleaved[0]), uint8(given.Interleaved[1])}
	return rtsp.Transport{
		Protocol: given.Protocol, Unicast: true, SSRC: given.SSRC, Mode: given.Mode,
		ClientPort: rtsp.Pair{t.to[0].Remote.Port(), t.to[1].Remote.Port()}, HasClientPort: true,
		ServerPort: t.ports.ports, HasServerPort: true,
	}, true
}

// deal sends interleaved frames, each the way that its channel goes. They may begin and end in the middle of one.
func (p *player) deal(b []byte) {
	from := 0 // of what goes by TCP
	for at := 0; at < len(b); {
		if p.cut > 0 { // the rest of a frame that is too long for a datagram, or goes by TCP
			n := min(p.cut, len(b)-at)
			p.cut -= n
			at += n
			if p.cutUDP {
				from = at
			}
			continue
		}
		n := 4 + (int(b[at+2])<<8 | int(b[at+3]))
		track, i := p.trackOf(b[at+1])
		if track != nil {
			p.write(b[from:at])
			if n <= len(b)-at {
				p.send(track, i, b[at+4:at+n])
			}
			from = min(at+n, len(b))
		}
		p.cutUDP = track != nil
		p.cut = max(0, n-(len(b)-at))
		at = min(at+n, len(b))
	}
	p.write(b[from:])
}

// trackOf returns the track with that channel, if it goes by UDP, and which of its ports.
func (p *player) trackOf(channel uint8) (*rtpTrack, int) {
	for _, t := range p.tracks {
		for i := range t.channels {
			if t.channels[i] == channel {
				return t, i
			}
		}
	}
	return nil, 0
}

// send sends a datagram to the player.
func (p *player) send(t *rtpTrack, i int, b []byte) {
	if t.player == nil {
		return
	}
	t.ports.conns[t.loop][i].WriteTo(b, t.to[i])
	p.packets.Sent++
	p.service.datagrams.Sent++
	p.sent += uint64(len(b))
	p.service.sent += uint64(len(b))
}

// endTracks ends what comes by UDP.
func (p *player) endTracks() {
	for _, t := range p.tracks {
		t.leave()
	}
	for _, f := range p.flight {
		if f.track != nil {
			f.track.leave()
		}
	}
	p.tracks, p.setups, p.cut, p.playing = nil, 0, 0, false
}
