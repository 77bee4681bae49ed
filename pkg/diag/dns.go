package diag

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"culvert.dev/pkg/egress"
	"culvert.dev/pkg/rest"
)

const (
	dnsTimeout    = 2 * time.Second // for each of two tries
	maxRecords    = 100
	maxNameserver = 8 // that are read of a resolv.conf
)

// Lookup asks for records of a name.
type Lookup struct {
	Name   string `json:"name" doc:"the name, or for PTR an address" min:"1" max:"255"`
	Type   string `json:"type,omitempty" doc:"what is asked for; the default is A and AAAA, for an address PTR" enum:"A,AAAA,CNAME,MX,NS,PTR,SRV,TXT"`
	Server string `json:"server,omitempty" doc:"the name server to ask, ADDRESS or ADDRESS:PORT; the default is what the private relay itself uses"`
}

// Answer is what there is of a name.
type Answer struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Server  string   `json:"server,omitempty"`
	Took    float64  `json:"took_ms"`
	Status  string   `json:"status,omitempty"` // of a chosen server: NOERROR, NXDOMAIN, SERVFAIL, ...
	Records []Record `json:"records,omitempty"`
	Problem string   `json:"problem,omitempty"` // why there are none
	Class   string   `json:"class,omitempty"`   // see Connection
}

// Record is one of them.
type Record struct {
	Name  string `json:"name,omitempty"` // if it is another one than what was asked for
	Type  string `json:"type"`
	TTL   int    `json:"ttl_s,omitempty"` // of a chosen server only
	Value string `json:"value"`
}

func (s *Site) lookup(ctx context.Context, in Lookup) (Answer, error) {
	address, err := netip.ParseAddr(strings.Trim(in.Name, "[]"))
	isAddress := err == nil && address.Zone() == ""
	switch {
	case in.Type == "" && isAddress:
		in.Type = "PTR"
	case isAddress && in.Type != "PTR":
		return Answer{}, rest.Errorf(http.StatusBadRequest, "%s is an address, which has PTR records alone", in.Name)
	case !isAddress && !egress.IsName(strings.TrimSuffix(in.Name, ".")):
		return Answer{}, rest.Errorf(http.StatusBadRequest, "%q is neither a name in ASCII (write its xn-- form) nor an address", clip(in.Name))
	}
	a := Answer{Name: in.Name, Type: in.Type}
	start := time.Now()
	if in.Server == "" {
		a.Type = either(in.Type, "A,AAAA")
		a.Records, err = s.lookupHere(ctx, strings.Trim(in.Name, "[]"), in.Type)
	} else {
		var at netip.AddrPort
		if at, err = s.nameserver(in.Server); err != nil {
			return a, err
		}
		a.Server = at.String()
		name := dns.Fqdn(in.Name)
		if isAddress {
			name, _ = dns.ReverseAddr(address.String())
		}
		types := []string{either(in.Type, "A")}
		if in.Type == "" {
			a.Type, types = "A,AAAA", []string{"A", "AAAA"}
		}
		for _, t := range types {
			var records []Record
			a.Status, records, err = askDNS(ctx, at, name, dns.StringToType[t])
			a.Records = append(a.Records, records...)
			if err != nil || a.Status == "NXDOMAIN" {
				break
			}
		}
		if err == nil && len(a.Records) == 0 {
			switch a.Status {
			case "NOERROR":
				a.Problem, a.Class = "the name has no records of this type", classNoName
			case "NXDOMAIN":
				a.Problem, a.Class = "there is no such name", classNoName
			default:
				a.Problem, a.Class = "the name server answers "+a.Status, classDNS
			}
		}
	}
	a.Took = ms(time.Since(start))
	a.Records = a.Records[:min(len(a.Records), maxRecords)]
	if err != nil {
		a.Class, a.Problem = classify(err)
	}
	return a, nil
}

// lookupHere asks as all of this program does: with the system's configuration, its hosts file included.
func (s *Site) lookupHere(ctx context.Context, name, kind string) (list []Record, err error) {
	r := s.resolver()
	add := func(kind, format string, a ...any) {
		list = append(list, Record{Type: kind, Value: clipTo(printable(fmt.Sprintf(format, a...)), maxValue)})
	}
	switch kind {
	case "":
		all, e := r.LookupNetIP(ctx, "ip", name)
		err = e
		for _, a := range all {
			if a = a.Unmap(); a.Is4() {
				add("A", "%s", a)
			} else {
				add("AAAA", "%s", a)
			}
		}
	case "A", "AAAA":
		all, e := r.LookupNetIP(ctx, map[string]string{"A": "ip4", "AAAA": "ip6"}[kind], name)
		err = e
		for _, a := range all {
			add(kind, "%s", a.Unmap())
		}
	case "CNAME":
		c, e := r.LookupCNAME(ctx, name)
		if err = e; err == nil {
			add(kind, "%s", c)
		}
	case "MX":
		all, e := r.LookupMX(ctx, name)
		err = partly(len(all), e)
		for _, m := range all {
			add(kind, "%d %s", m.Pref, m.Host)
		}
	case "NS":
		all, e := r.LookupNS(ctx, name)
		err = partly(len(all), e)
		for _, n := range all {
			add(kind, "%s", n.Host)
		}
	case "PTR":
		if _, e := netip.ParseAddr(name); e != nil {
			return nil, rest.Errorf(http.StatusBadRequest, "for PTR, give the address itself, or name a server")
		}
		all, e := r.LookupAddr(ctx, name)
		err = partly(len(all), e)
		for _, n := range all {
			add(kind, "%s", n)
		}
	case "SRV":
		_, all, e := r.LookupSRV(ctx, "", "", name)
		err = partly(len(all), e)
		for _, v := range all {
			add(kind, "%d %d %d %s", v.Priority, v.Weight, v.Port, v.Target)
		}
	case "TXT":
		all, e := r.LookupTXT(ctx, name)
		err = e
		for _, t := range all {
			add(kind, "%s", t)
		}
	}
	return list, err
}

// partly forgives malformed records beside good ones.
func partly(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}

// nameserver is a server that may be asked: one of the system's, or one that the site allows.
func (s *Site) nameserver(text string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(text, "[]"))
		if err != nil {
			return at, rest.Errorf(http.StatusBadRequest, "server %q: want ADDRESS or ADDRESS:PORT", clip(text))
		}
		at = netip.AddrPortFrom(a, 53)
	}
	if at.Port() == 0 {
		return at, rest.Errorf(http.StatusBadRequest, "server %q: port 0", clip(text))
	}
	if at.Port() == 53 && slices.Contains(s.nameservers(), at.Addr().String()) || s.allows(at.Addr().String(), at.Addr(), at.Port()) {
		return at, nil
	}
	return at, forbidden(at.String())
}

// nameservers are the system's, as far as they are known.
func (s *Site) nameservers() []string {
	f, err := os.Open(either(s.resolvConf, "/etc/resolv.conf"))
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseResolvConf(io.LimitReader(f, 64<<10))
}

func parseResolvConf(r io.Reader) (list []string) {
	for sc := bufio.NewScanner(r); sc.Scan() && len(list) < maxNameserver; {
		if f := strings.Fields(sc.Text()); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				list = append(list, a.String())
			}
		}
	}
	return list
}

var errTruncated = errors.New("the answer is cut off, by TCP too")

// askDNS asks one server, by UDP, and by TCP for what is too long for that.
func askDNS(ctx context.Context, at netip.AddrPort, name string, kind uint16) (status string, list []Record, err error) {
	m := new(dns.Msg).SetQuestion(name, kind).SetEdns0(1232, false)
	var res *dns.Msg
	for _, network := range []string{"udp", "udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: dnsTimeout, UDPSize: 1232}
		res, _, err = c.ExchangeContext(ctx, m, at.String())
		if ctx.Err() != nil {
			return "", nil, ctx.Err()
		}
		if err == nil && !res.Truncated || errors.Is(err, os.ErrPermission) {
			break
		}
		if err == nil && network == "udp" { // straight to TCP
			c.Net = "tcp"
			if res, _, err = c.ExchangeContext(ctx, m, at.String()); err == nil && res.Truncated {
				err = errTruncated
			}
			break
		}
	}
	if err != nil {
		return "", nil, err
	}
	if status = dns.RcodeToString[res.Rcode]; status == "" {
		status = "RCODE" + strconv.Itoa(res.Rcode)
	}
	for _, rr := range res.Answer {
		h := rr.Header()
		r := Record{Type: dns.TypeToString[h.Rrtype], TTL: int(h.Ttl)}
		if !strings.EqualFold(h.Name, name) {
			r.Name = printable(h.Name)
		}
		if t, ok := rr.(*dns.TXT); ok {
			r.Value = strings.Join(t.Txt, "")
		} else {
			r.Value = strings.TrimPrefix(rr.String(), h.String())
		}
		r.Value = clipTo(printable(r.Value), maxValue)
		if list = append(list, r); len(list) == maxRecords {
			break
		}
	}
	return status, list, nil
}

// either is a, or b if a is "".
func either(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// isNoName reports whether err says that a name is not there, and not that nobody could be asked.
func isNoName(err error) bool {
	e, ok := errors.AsType[*net.DNSError](err)
	return ok && e.IsNotFound
}
