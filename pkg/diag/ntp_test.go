package diag

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// fakeNTP answers on loopback with what answer makes of a request; nil is silence.
func fakeNTP(t *testing.T, answer func(n int, req []byte) []byte) netip.AddrPort {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for n := 0; ; n++ {
			size, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if a := answer(n, b[:size]); a != nil {
				c.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// reply is a good answer of a server whose clock is ahead.
func reply(req []byte, ahead time.Duration) []byte {
	b := make([]byte, 0, ntpSize)
	b = append(b, 4<<3|4, 2, 6, 0xec)
	b = binary.BigEndian.AppendUint32(b, 1<<16/100) // root delay: 10 ms
	b = binary.BigEndian.AppendUint32(b, 1<<16/50)  // root dispersion: 20 ms
	b = append(b, 192, 0, 2, 1)
	now := time.Now().Add(ahead)
	b = appendNTPTime(b, now.Add(-time.Minute))
	b = append(b, req[40:48]...)
	b = appendNTPTime(b, now)
	return appendNTPTime(b, now)
}

func TestNTP(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(n int, req []byte) []byte
		offset float64 // ms
		want   string  // of the error
	}{
		{"a minute ahead", func(_ int, req []byte) []byte { return reply(req, time.Minute) }, 60000, ""},
		{"behind by two hours", func(_ int, req []byte) []byte { return reply(req, -2*time.Hour) }, -7200000, ""},
		{"no NTP", func(int, []byte) []byte { return []byte("hello") }, 0, "no packet of NTP"},
		{"a client's packet", func(_ int, req []byte) []byte { return append([]byte(nil), req...) }, 0, "no packet of NTP"},
		{"not set", func(_ int, req []byte) []byte { b := reply(req, 0); b[0] |= 3 << 6; return b }, 0, "own clock is not set"},
		{"stratum 16", func(_ int, req []byte) []byte { b := reply(req, 0); b[1] = 16; return b }, 0, "own clock is not set"},
		{"no time", func(_ int, req []byte) []byte { b := reply(req, 0); clear(b[40:48]); return b }, 0, "own clock is not set"},
		{"far from its source", func(_ int, req []byte) []byte { b := reply(req, 0); b[9] = 0x40; return b }, 0, "own clock is not set"},
		{"time goes backwards", func(_ int, req []byte) []byte { b := reply(req, 0); b[35]++; return b }, 0, "no packet of NTP"},
		{"a kiss", func(_ int, req []byte) []byte { b := reply(req, 0); b[1] = 0; copy(b[12:], "RATE"); return b }, 0, "less often (RATE)"},
		{"another kiss", func(_ int, req []byte) []byte { b := reply(req, 0); b[1] = 0; copy(b[12:], "A\x1b[m"); return b }, 0, "refuses to answer (\"A?[m\")"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := askNTP(t.Context(), fakeNTP(t, c.answer), 2, time.Now)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%+v, %v, want %q", got, err, c.want)
				}
				return
			}
			// However slow this machine is, half of the delay bounds the error.
			if err != nil || math.Abs(got.Offset-c.offset) > got.Error || got.Answers != 2 || got.Stratum != 2 || got.Source != "192.0.2.1" {
				t.Errorf("%+v, %v, want an offset of %v ms", got, err, c.offset)
			}
		})
	}
	t.Run("what others send", func(t *testing.T) {
		// A forged answer comes first: it cannot know the question.
		at := fakeNTP(t, func(_ int, req []byte) []byte { return nil })
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		req := appendNTPRequest(nil, 42)
		if _, err := parseNTP(reply(req, 0), 43, time.Now()); !errors.Is(err, errNotOurs) {
			t.Error(err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := askNTP(ctx, fakeNTP(t, func(int, []byte) []byte { return nil }), 4, time.Now)
		if class, _ := classify(err); class != classTimeout {
			t.Errorf("%v is %s", err, class)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		_, err := askNTP(t.Context(), netip.MustParseAddrPort(gone), 1, time.Now)
		if class, _ := classify(err); class != classRefused && class != classTimeout {
			t.Errorf("%v is %s", err, class)
		}
	})
}

// TestNTPEra has times before and after the seconds of NTP begin anew.
func TestNTPEra(t *testing.T) {
	for _, text := range []string{"1970-01-01T00:00:00Z", "2026-11-23T12:00:00.5Z", "2036-02-07T06:28:15Z", "2036-02-07T06:28:16Z", "2040-01-01T00:00:00.25Z", "2106-01-01T00:00:00Z"} {
		want, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		b := appendNTPTime(nil, want)
		for _, off := range []time.Duration{0, 24 * time.Hour, -30 * 365 * 24 * time.Hour, 30 * 365 * 24 * time.Hour} {
			got := ntpTime(binary.BigEndian.Uint64(b), want.Add(off))
			if d := got.Sub(want); d < -time.Microsecond || d > time.Microsecond {
				t.Errorf("%v seen from %v is %v", want, want.Add(off), got)
			}
		}
	}
}

func FuzzParseNTP(f *testing.F) {
	req := appendNTPRequest(nil, 42)
	f.Add(reply(req, 0), uint64(42), int64(1795000000))
	f.Add(reply(req, time.Hour)[:47], uint64(42), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, cookie uint64, unix int64) {
		now := time.Unix(unix%(1<<40), 0)
		r, err := parseNTP(b, cookie, now)
		if err != nil {
			return
		}
		if r.sent.Before(r.received) || r.stratum == 0 || r.stratum > 15 {
			t.Errorf("taken: %+v", r)
		}
		if d := r.received.Unix() - now.Unix(); d > 1<<31 || d < -1<<31 {
			t.Errorf("%v is in another era than %v", r.received, now)
		}
	})
}
