package acme

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// RFC2136 changes records by dynamic updates (RFC 2136), signed with a shared secret
// (TSIG, RFC 8945).
type RFC2136 struct {
	// Server is the primary server, HOST:PORT.
	Server string

	// KeyName and Secret, in base64, are of the TSIG key; KeyAlgorithm is
	// "hmac-sha256", which is the default, or "hmac-sha512". Without a KeyName nothing
	// is signed, and the server knows us by our address.
	KeyName, KeyAlgorithm, Secret string
}

// dnsTime bounds one question and its answer.
const dnsTime = 10 * time.Second

// Check reports what is wrong with the settings.
func (p *RFC2136) Check() error {
	if _, _, err := net.SplitHostPort(p.Server); err != nil {
		return fmt.Errorf("server %q: want HOST:PORT", p.Server)
	}
	if p.KeyName == "" {
		return nil
	}
	if _, err := p.algorithm(); err != nil {
		return err
	}
	if b, err := base64.StdEncoding.DecodeString(p.Secret); err != nil || len(b) == 0 {
		return errors.New("the secret is not base64")
	}
	return nil
}

func (p *RFC2136) algorithm() (string, error) {
	switch p.KeyAlgorithm {
	case "", "hmac-sha256":
		return dns.HmacSHA256, nil
	case "hmac-sha512":
		return dns.HmacSHA512, nil
	}
	return "", fmt.Errorf("key algorithm %q: want hmac-sha256 or hmac-sha512", p.KeyAlgorithm)
}

// AppendRecords implements libdns.RecordAppender.
func (p *RFC2136) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.update(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords implements libdns.RecordDeleter.
func (p *RFC2136) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, p.update(ctx, zone, records, (*dns.Msg).Remove)
}

// update sends one update of TXT records.
func (p *RFC2136) update(ctx context.Context, zone string, records []libdns.Record, change func(*dns.Msg, []dns.RR)) error {
	zone = dns.Fqdn(zone)
	m := new(dns.Msg)
	m.SetUpdate(zone)
	for _, rec := range records {
		rr := rec.RR()
		if rr.Type != "TXT" {
			return fmt.Errorf("a record of type %s", rr.Type)
		}
		change(m, []dns.RR{&dns.TXT{
			Hdr: dns.RR_Header{
				Name: dns.Fqdn(libdns.AbsoluteName(rr.Name, zone)), Rrtype: dns.TypeTXT,
				Class: dns.ClassINET, Ttl: uint32(rr.TTL / time.Second),
			},
			Txt: []string{rr.Data},
		}})
	}
	c := &dns.Client{Net: "udp", Timeout: dnsTime}
	if p.KeyName != "" {
		algorithm, err := p.algorithm()
		if err != nil {
			return err
		}
		name := dns.CanonicalName(p.KeyName)
		m.SetTsig(name, algorithm, 300, time.Now().Unix())
		c.TsigSecret = map[string]string{name: p.Secret}
	}
	answer, err := p.exchange(ctx, c, m)
	if err != nil {
		return fmt.Errorf("update of zone %s at %s: %w", zone, p.Server, err)
	}
	if answer.Rcode == dns.RcodeSuccess {
		return nil
	}
	text := dns.RcodeToString[answer.Rcode]
	switch answer.Rcode {
	case dns.RcodeNotAuth:
		text += " (it is not the primary server of the zone, does not know the key, or has another secret for it)"
	case dns.RcodeRefused:
		text += " (the key may not change this name)"
	}
	return fmt.Errorf("update of zone %s at %s: %s", zone, p.Server, text)
}

// exchange asks by UDP, and by TCP when that has no answer or only half of one. An
// answer to a signed question has to be signed too.
func (p *RFC2136) exchange(ctx context.Context, c *dns.Client, m *dns.Msg) (*dns.Msg, error) {
	packed := m.Copy() // signing changes it
	answer, _, err := c.ExchangeContext(ctx, m, p.Server)
	if err != nil && ctx.Err() == nil && isNetwork(err) || err == nil && answer.Truncated {
		c.Net = "tcp"
		answer, _, err = c.ExchangeContext(ctx, packed, p.Server)
	}
	switch {
	case err != nil:
		return nil, explainTSIG(err)
	case answer.Id != m.Id || !answer.Response || answer.Opcode != dns.OpcodeUpdate:
		return nil, errors.New("the answer is to another question")
	case p.KeyName != "" && answer.IsTsig() == nil && answer.Rcode == dns.RcodeSuccess:
		return nil, errors.New("the answer is not signed")
	}
	return answer, nil
}

func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || strings.Contains(err.Error(), "EOF")
}

func explainTSIG(err error) error {
	switch {
	case errors.Is(err, dns.ErrTime):
		return fmt.Errorf("%w: the clocks differ by more than five minutes", err)
	case errors.Is(err, dns.ErrSig), errors.Is(err, dns.ErrSecret), errors.Is(err, dns.ErrKeyAlg):
		return fmt.Errorf("%w: the server has another secret or algorithm", err)
	}
	return err
}
