package rtsp

import (
	"strconv"
	"strings"
)

// maxTransports bounds the alternatives of a Transport field.
const maxTransports = 16

// Transport is one alternative of a Transport field (rfc2326#section-12.39). Parameters that have no
// field here are not passed on.
type Transport struct {
	Protocol  string // "RTP/AVP", "RTP/AVPF", "RTP/SAVP", "RTP/SAVPF"; others as they were
	TCP       bool   // the lower transport; otherwise it is UDP
	Unicast   bool
	Multicast bool

	Interleaved, ClientPort, ServerPort, Port             Pair
	HasInterleaved, HasClientPort, HasServerPort, HasPort bool

	Destination, Source string
	TTL                 string // digits
	SSRC                string // hexadecimal digits
	Mode                string // "PLAY", "RECORD"; without quotes
	Append              bool
}

// Pair is a range of two: for RTP and for RTCP. If a peer gave one number, the second is the next one.
type Pair [2]uint16

func parsePair(v string) (p Pair, ok bool) {
	first, second, two := strings.Cut(v, "-")
	n, err := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	if err != nil {
		return p, false
	}
	p = Pair{uint16(n), uint16(n + 1)}
	if two {
		n, err := strconv.ParseUint(strings.TrimSpace(second), 10, 16)
		if err != nil {
			return p, false
		}
		p[1] = uint16(n)
	}
	return p, two || n < 65535
}

// ParseTransport reads a Transport field. Alternatives come in the order of the peer's preference.
func ParseTransport(v []byte) ([]Transport, error) {
	var all []Transport
	for rest := string(v); ; {
		one, more, ok := cutUnquoted(rest, ',')
		if one = strings.TrimSpace(one); one != "" {
			if len(all) == maxTransports {
				return nil, badf("more than %d transports", maxTransports)
			}
			t, err := parseTransport(one)
			if err != nil {
				return nil, err
			}
			all = append(all, t)
		}
		if !ok {
			break
		}
		rest = more
	}
	if len(all) == 0 {
		return nil, badf("an empty Transport")
	}
	return all, nil
}

func parseTransport(v string) (Transport, error) {
	var t Transport
	spec, rest, more := cutUnquoted(v, ';')
	spec = strings.ToUpper(strings.TrimSpace(spec))
	if s, ok := strings.CutSuffix(spec, "/TCP"); ok {
		spec, t.TCP = s, true
	} else {
		spec = strings.TrimSuffix(spec, "/UDP")
	}
	for part := range strings.SplitSeq(spec, "/") {
		if !token([]byte(part)) {
			return t, badf("transport %.40q", v)
		}
	}
	t.Protocol = spec
	for more {
		var p string
		p, rest, more = cutUnquoted(rest, ';')
		name, value, _ := strings.Cut(p, "=")
		value = unquote(strings.TrimSpace(value))
		ok := true
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "unicast":
			t.Unicast = true
		case "multicast":
			t.Multicast = true
		case "interleaved":
			t.Interleaved, ok = parsePair(value)
			ok = ok && t.Interleaved[0] <= 255 && t.Interleaved[1] <= 255
			t.HasInterleaved = true
		case "client_port":
			t.ClientPort, ok = parsePair(value)
			t.HasClientPort = true
		case "server_port":
			t.ServerPort, ok = parsePair(value)
			t.HasServerPort = true
		case "port":
			t.Port, ok = parsePair(value)
			t.HasPort = true
		case "destination":
			t.Destination = value
		case "source":
			t.Source = value
		case "ttl":
			_, ok = digits([]byte(value))
			t.TTL = value
		case "ssrc":
			t.SSRC = value
		case "mode":
			t.Mode = value
			if token([]byte(value)) {
				t.Mode = strings.ToUpper(value)
			}
		case "append":
			t.Append = true
		}
		if !ok {
			return t, badf("transport parameter %.40q", p)
		}
	}
	return t, nil
}

// String writes the alternative as a field has it.
func (t Transport) String() string {
	var b strings.Builder
	b.WriteString(t.Protocol)
	if t.TCP {
		b.WriteString("/TCP")
	}
	if t.Unicast {
		b.WriteString(";unicast")
	}
	if t.Multicast {
		b.WriteString(";multicast")
	}
	pair := func(name string, p Pair, has bool) {
		if has {
			b.WriteString(";" + name + "=" + strconv.Itoa(int(p[0])) + "-" + strconv.Itoa(int(p[1])))
		}
	}
	text := func(name, v string) {
		switch {
		case v == "":
		case token([]byte(strings.ReplaceAll(v, ":", ""))): // an IPv6 address is as it is
			b.WriteString(";" + name + "=" + v)
		default:
			b.WriteString(";" + name + "=" + quote(v))
		}
	}
	text("destination", t.Destination)
	text("source", t.Source)
	pair("interleaved", t.Interleaved, t.HasInterleaved)
	if t.Append {
		b.WriteString(";append")
	}
	text("ttl", t.TTL)
	pair("port", t.Port, t.HasPort)
	pair("client_port", t.ClientPort, t.HasClientPort)
	pair("server_port", t.ServerPort, t.HasServerPort)
	text("ssrc", t.SSRC)
	if t.Mode != "" {
		b.WriteString(";mode=" + quote(t.Mode))
	}
	return b.String()
}

// cutUnquoted is strings.Cut at the first sep that is not in a quoted string.
func cutUnquoted(s string, sep byte) (before, after string, found bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == sep && !quoted:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// unquote returns what a quoted string says, or s if it is none (rfc9110#section-5.6.4).
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	s = s[1 : len(s)-1]
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
