package diag

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/egress"
)

// A packet of NTP is 48 bytes (rfc5905#section-7.3):
//
//	0 LI(2) VN(3) Mode(3) | 1 stratum | 2 poll | 3 precision | 4 root delay | 8 root dispersion | 12 reference id |
//	16 reference timestamp | 24 origin timestamp | 32 receive timestamp | 40 transmit timestamp
const ntpSize = 48

const (
	ntpTimeout = 2 * time.Second
	ntpUnix    = 2208988800 // seconds from 1900 to 1970
	maxRoot    = 16 * time.Second
)

// ntpReply is what an answer says. Times are those of the server's clock.
type ntpReply struct {
	leap, version, stratum uint8
	precision              int8
	rootDelay, rootDisp    time.Duration
	reference              [4]byte
	received, sent         time.Time
}

// KissError is a server that does not want to be asked (rfc5905#section-7.4).
type KissError string

func (e KissError) Error() string {
	switch e {
	case "RATE":
		return "the server wants to be asked less often (RATE)"
	case "DENY", "RSTR":
		return fmt.Sprintf("the server does not answer this machine (%s)", string(e))
	}
	return fmt.Sprintf("the server refuses to answer (%q)", string(e))
}

var (
	errNotNTP   = errors.New("the answer is no packet of NTP")
	errNotOurs  = errors.New("the answer is to another question")
	errUnsynced = errors.New("the server's own clock is not set")
)

// appendNTPRequest appends a request whose transmit timestamp is cookie: the server sends it back, and nothing that could be
// guessed is told of our clock (rfc9109, draft-ietf-ntp-data-minimization).
func appendNTPRequest(b []byte, cookie uint64) []byte {
	b = append(b, 4<<3|3) // version 4, mode 3: client
	b = append(b, make([]byte, 39)...)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// parseNTP reads the answer to a request with that cookie. now chooses the era of its times, which end in 2036.
func parseNTP(b []byte, cookie uint64, now time.Time) (ntpReply, error) {
	if len(b) < ntpSize || b[0]&7 != 4 || b[0]>>3&7 < 1 || b[0]>>3&7 > 4 {
		return ntpReply{}, errNotNTP
	}
	if binary.BigEndian.Uint64(b[24:]) != cookie {
		return ntpReply{}, errNotOurs
	}
	r := ntpReply{
		leap: b[0] >> 6, version: b[0] >> 3 & 7, stratum: b[1], precision: int8(b[3]),
		rootDelay: shortTime(b[4:]), rootDisp: shortTime(b[8:]), reference: [4]byte(b[12:]),
	}
	if r.stratum == 0 {
		return ntpReply{}, KissError(printable(string(r.reference[:])))
	}
	received, sent := binary.BigEndian.Uint64(b[32:]), binary.BigEndian.Uint64(b[40:])
	if r.stratum > 15 || r.leap == 3 || received == 0 || sent == 0 || r.rootDelay/2+r.rootDisp >= maxRoot {
		return ntpReply{}, errUnsynced
	}
	r.received, r.sent = ntpTime(received, now), ntpTime(sent, now)
	if r.sent.Before(r.received) {
		return ntpReply{}, errNotNTP
	}
	return r, nil
}

// ntpTime is a timestamp as a time, in the era that is nearest to now.
func ntpTime(t uint64, now time.Time) time.Time {
	seconds := int64(t>>32) - ntpUnix
	const era = 1 << 32
	seconds += (now.Unix() - seconds + era/2) / era * era
	if now.Unix()-seconds < -era/2 {
		seconds -= era
	}
	return time.Unix(seconds, int64((t&(1<<32-1))*1e9>>32))
}

// appendNTPTime appends a time as a timestamp.
func appendNTPTime(b []byte, t time.Time) []byte {
	seconds := uint64(t.Unix() + ntpUnix)
	return binary.BigEndian.AppendUint64(b, seconds<<32|uint64(t.Nanosecond())<<32/1e9)
}

// shortTime reads 16 bits of seconds and 16 of their fraction.
func shortTime(b []byte) time.Duration {
	return time.Duration(uint64(binary.BigEndian.Uint32(b)) * 1e9 >> 16)
}

// CheckServer reports what is wrong with HOST or HOST:PORT of a server of NTP.
func CheckServer(s string) error {
	host, _, err := splitTarget(s, 123)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err != nil && !egress.IsName(strings.TrimSuffix(host, ".")) {
		return fmt.Errorf("%q: want HOST or HOST:PORT", clip(s))
	}
	return nil
}

// Clock is what a server of NTP says of this machine's clock.
type Clock struct {
	Server  string  `json:"server"`
	Address string  `json:"address,omitempty"`
	Offset  float64 `json:"offset_ms"` // what has to be added to this machine's clock
	Delay   float64 `json:"delay_ms"`  // the round trip, without the server's own time
	Error   float64 `json:"error_ms"`  // the offset may be off by as much: half of the delay, and what the server says of itself
	Stratum int     `json:"stratum,omitempty"`
	Source  string  `json:"source,omitempty"` // what the server has its time from
	Answers int     `json:"answers"`
	Problem string  `json:"problem,omitempty"` // why there is no offset
}

// askNTP asks a server so many times and takes the answer with the shortest way.
func askNTP(ctx context.Context, at netip.AddrPort, samples int, now func() time.Time) (Clock, error) {
	result := Clock{Address: at.String()}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", at.String()) // connected: what others send does not come
	if err != nil {
		return result, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	type sample struct {
		offset, delay time.Duration
		reply         ntpReply
	}
	var got []sample
	var failure error
	for range samples {
		offset, delay, reply, err := exchangeNTP(ctx, c, now)
		if err == nil {
			got = append(got, sample{offset, delay, reply})
			continue
		}
		failure = err
		var kiss KissError
		if errors.As(err, &kiss) || ctx.Err() != nil || len(got) == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	if len(got) == 0 {
		return result, failure
	}
	best := slices.MinFunc(got, func(a, b sample) int { return int(a.delay - b.delay) })
	r := best.reply
	result.Offset, result.Delay, result.Answers = ms(best.offset), ms(best.delay), len(got)
	result.Error = ms(best.delay/2 + r.rootDelay/2 + r.rootDisp)
	result.Stratum = int(r.stratum)
	switch {
	case r.stratum == 1:
		result.Source = printable(string(r.reference[:]))
	case at.Addr().Is4():
		result.Source = netip.AddrFrom4(r.reference).String()
	}
	return result, nil
}

// exchangeNTP asks once.
func exchangeNTP(ctx context.Context, c net.Conn, now func() time.Time) (offset, delay time.Duration, r ntpReply, err error) {
	var cookie [8]byte
	rand.Read(cookie[:])
	nonce := binary.BigEndian.Uint64(cookie[:])
	deadline := time.Now().Add(ntpTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.SetDeadline(deadline)
	if ctx.Err() != nil {
		return 0, 0, r, ctx.Err()
	}
	t1, began := now(), time.Now()
	if _, err := c.Write(appendNTPRequest(nil, nonce)); err != nil {
		return 0, 0, r, err
	}
	var b [512]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return 0, 0, r, err
		}
		took := time.Since(began) // by the monotonic clock: somebody may set the other one meanwhile
		t4 := t1.Add(took)
		if r, err = parseNTP(b[:n], nonce, t4); errors.Is(err, errNotOurs) {
			continue // of an earlier question
		} else if err != nil {
			return 0, 0, r, err
		}
		offset = (r.received.Sub(t1) + r.sent.Sub(t4)) / 2
		delay = max(0, took-r.sent.Sub(r.received))
		return offset, delay, r, nil
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
