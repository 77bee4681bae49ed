package onvif

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/net/ipv4"
)

const (
	// probePort is that of WS-Discovery.
	probePort = 3702
	// maxAnswers bounds the datagrams that one search reads, maxDevices what it finds.
	maxAnswers = 1024
	maxDevices = 256
	// maxSockets bounds the sockets of one search: machines of container hosts have hundreds of interfaces.
	maxSockets = 32
	// repeatAfter is when a probe is sent again, as datagrams get lost (SOAP over UDP, section 3.3.2).
	repeatAfter = 500 * time.Millisecond
)

// ParseAddress reads an address to be asked by itself, with or without a port.
func ParseAddress(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a, nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: want an IP address, or one with a port", s)
	}
	return netip.AddrPortFrom(a, probePort), nil
}

// found is a device that answered a probe.
type found struct {
	id       string
	address  netip.Addr // that the answer came from
	xaddrs   []string
	name     string
	hardware string
	location string
}

// probes returns what is sent: one for cameras, and one for devices that do not say what they are. The ID of both is
// what answers relate to.
func probes(id string) [][]byte {
	one := func(types string) []byte {
		return []byte(`<?xml version="1.0" encoding="UTF-8"?>` +
			`<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope" xmlns:w="http://schemas.xmlsoap.org/ws/2004/08/addressing"` +
			` xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:dn="http://www.onvif.org/ver10/network/wsdl">` +
			`<e:Header><w:MessageID>` + id + `</w:MessageID><w:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</w:To>` +
			`<w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</w:Action></e:Header>` +
			`<e:Body><d:Probe>` + types + `</d:Probe></e:Body></e:Envelope>`)
	}
	return [][]byte{one("<d:Types>dn:NetworkVideoTransmitter</d:Types>"), one("")}
}

// newID returns a name that nobody else has.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// parseMatches reads an answer to a probe with that ID which came from an address.
func parseMatches(b []byte, id string, from netip.Addr) ([]found, error) {
	doc, err := parse(b)
	if err != nil {
		return nil, err
	}
	if to := doc.value("Header", "RelatesTo"); to != "" && to != id {
		return nil, errors.New("onvif: an answer to somebody else")
	}
	var all []found
	for _, m := range doc.all("ProbeMatches", "ProbeMatch") {
		f := found{address: from, id: clean(m.value("EndpointReference", "Address"))}
		if f.id == "" || len(all) == maxDevices {
			continue
		}
		var places []string
		camera := strings.Contains(m.value("Types"), "NetworkVideoTransmitter")
		for _, scope := range strings.Fields(m.value("Scopes")) {
			what, ok := strings.CutPrefix(scope, "onvif://www.onvif.org/")
			if !ok {
				continue
			}
			camera = true
			kind, value, _ := strings.Cut(what, "/")
			value = scopeText(value)
			switch strings.ToLower(kind) {
			case "name":
				f.name = value
			case "hardware":
				f.hardware = value
			case "location":
				if i := strings.LastIndexByte(value, '/'); i >= 0 {
					value = value[i+1:] // of country/china, city/hangzhou
				}
				if value != "" && len(places) < 4 {
					places = append(places, value)
				}
			}
		}
		if !camera { // printers and computers answer probes, too
			continue
		}
		f.location = strings.Join(places, ", ")
		f.xaddrs = strings.Fields(m.value("XAddrs"))
		f.xaddrs = f.xaddrs[:min(len(f.xaddrs), 16)]
		all = append(all, f)
	}
	return all, nil
}

func scopeText(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		s = u
	}
	return clean(strings.ReplaceAll(s, "_", " "))
}

// printable returns s without what could do something to a terminal.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "")))
}

// clean returns what a device says of itself so that it can be shown to people.
func clean(s string) string {
	s = printable(s)
	if r := []rune(s); len(r) > 100 {
		s = string(r[:100])
	}
	return s
}

// search probes and returns who answered until ctx ends, each once, in the order of their addresses.
func (f *Finder) search(ctx context.Context) ([]found, error) {
	wait := f.Wait
	if wait <= 0 {
		wait = DefaultWait
	}
	sockets, err := f.sockets()
	defer func() {
		for _, s := range sockets {
			s.conn.Close()
		}
	}()
	if len(sockets) == 0 {
		return nil, fmt.Errorf("look for cameras: no network to ask on: %w", err)
	}
	id := newID()
	r := &results{id: id, byID: make(map[string]*found)}
	var readers sync.WaitGroup
	until := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	for _, s := range sockets {
		s.conn.SetReadDeadline(until)
		readers.Go(func() { r.read(s.conn) })
	}
	expire := func() {
		for _, s := range sockets {
			s.conn.SetReadDeadline(time.Unix(1, 0))
		}
	}
	stop := context.AfterFunc(ctx, expire)
	defer stop()
	sent, failed := 0, error(nil)
	for i := range 2 {
		for _, s := range sockets {
			for _, p := range probes(id) {
				for _, to := range s.to {
					if _, err := s.conn.WriteToUDPAddrPort(p, to); err != nil {
						failed = err
						continue
					}
					sent++
				}
			}
		}
		if i == 0 {
			select {
			case <-time.After(min(repeatAfter, wait/2)):
			case <-ctx.Done():
			}
		}
	}
	if sent == 0 {
		stop()
		expire()
		readers.Wait()
		return nil, fmt.Errorf("look for cameras: no probe could be sent: %w", failed)
	}
	readers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.sorted(), nil
}

// socket is where probes leave from, and whom they go to.
type socket struct {
	conn *net.UDPConn
	to   []netip.AddrPort
}

var (
	group4 = netip.AddrPortFrom(netip.MustParseAddr("239.255.255.250"), probePort)
	group6 = netip.MustParseAddr("ff02::c")
)

// sockets opens one per interface and version of IP, and one for the addresses that are asked by themselves.
func (f *Finder) sockets() ([]socket, error) {
	var all []socket
	var failed error
	add := func(network string, local *net.UDPAddr, to ...netip.AddrPort) *net.UDPConn {
		c, err := net.ListenUDP(network, local)
		if err != nil {
			failed = err
			return nil
		}
		all = append(all, socket{c, to})
		return c
	}
	if len(f.Addresses) > 0 {
		var v4, v6 []netip.AddrPort
		for _, a := range f.Addresses {
			if a.Addr().Is4() {
				v4 = append(v4, a)
			} else {
				v6 = append(v6, a)
			}
		}
		if len(v4) > 0 {
			add("udp4", nil, v4...)
		}
		if len(v6) > 0 {
			add("udp6", nil, v6...)
		}
	}
	if f.NoMulticast {
		return all, failed
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return all, err
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 || len(all) >= maxSockets {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			failed = err
			continue
		}
		var four, six bool
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			switch ip, _ := netip.AddrFromSlice(n.IP); {
			case !four && ip.Unmap().Is4():
				if c := add("udp4", &net.UDPAddr{IP: n.IP}, group4); c != nil {
					four = true
					p := ipv4.NewPacketConn(c)
					// Bound to the interface's address Linux sends there anyway, others have to be told.
					p.SetMulticastInterface(&i)
					p.SetMulticastTTL(1)
				}
			case !six && ip.Is6() && ip.IsLinkLocalUnicast():
				six = add("udp6", &net.UDPAddr{IP: n.IP, Zone: i.Name}, netip.AddrPortFrom(group6.WithZone(i.Name), probePort)) != nil
			}
		}
	}
	return all, failed
}

// results gathers the answers of all sockets.
type results struct {
	id string

	mu      sync.Mutex
	answers int
	byID    map[string]*found
}

func (r *results) read(c *net.UDPConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() || errors.Is(err, net.ErrClosed) {
				return
			}
			if !r.more() { // of a port that is closed, perhaps
				return
			}
			continue
		}
		if !r.more() {
			return
		}
		all, err := parseMatches(b[:n], r.id, from.Addr().Unmap())
		if err != nil {
			continue
		}
		r.mu.Lock()
		for _, f := range all {
			r.add(f)
		}
		r.mu.Unlock()
	}
}

// more counts an answer and reports whether it is within the bound.
func (r *results) more() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers++
	return r.answers <= maxAnswers
}

// add keeps one answer of each device: one over IPv4 if there is, for that is what people write into configurations.
func (r *results) add(f found) {
	old := r.byID[f.id]
	if old == nil && len(r.byID) >= maxDevices {
		return
	}
	if old == nil || f.address.Is4() && !old.address.Is4() {
		r.byID[f.id] = &f
	}
}

func (r *results) sorted() []found {
	var all []found
	for _, f := range r.byID {
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b found) int {
		if c := a.address.Compare(b.address); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return all
}

// service returns the URL of the device's service, which must be at the address that answered: otherwise an answer
// could have us ask anybody.
func (f *found) service() (string, error) {
	var secure string
	for _, x := range f.xaddrs {
		u, err := url.Parse(x)
		if err != nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err != nil || a.WithZone("").Unmap() != f.address.WithZone("") {
			continue
		}
		if u.Scheme == "http" {
			return u.String(), nil
		}
		secure = u.String()
	}
	if secure != "" {
		return secure, nil
	}
	return "", errors.New("says that it is somewhere else than where it answers from")
}
