package http2

import (
	"unsafe"

	"golang.org/x/net/http2/hpack"

	"culvert.dev/pkg/http1"
)

// Header compression (RFC 7541). The Huffman code is that of x/net; the tables are ours, because those of x/net hold
// Go strings and two maps for each connection, silent ones too, and make a string of every value that passes. Here a
// table is one slice of bytes and one of entries, which are as large as what is in them.

// tableSize bounds both dynamic tables, in the octets of rfc7541#section-4.1. It is the default, so that we never have
// to announce it.
const tableSize = 4096

// entrySize is what an entry counts besides its bytes.
const entrySize = 32

// table is a dynamic table.
type table struct {
	text []byte  // names and values, the oldest first; text[0] is at offset base
	ents []entry // the oldest first
	base uint32
	size uint32 // as rfc7541#section-4.1 counts
	max  uint32
}

type entry struct {
	name, field uint32 // hashes of the name and of name and value; encoder only
	off         uint32
	nameLen     uint16
	valueLen    uint16
}

func (t *table) name(e *entry) []byte {
	i := e.off - t.base
	return t.text[i : i+uint32(e.nameLen)]
}

func (t *table) value(e *entry) []byte {
	i := e.off - t.base + uint32(e.nameLen)
	return t.text[i : i+uint32(e.valueLen)]
}

// add appends an entry, whose bytes must not lie in the table.
func (t *table) add(e entry, name, value []byte) {
	n := uint32(len(name) + len(value) + entrySize)
	if n > t.max {
		t.evict(t.max)
		return
	}
	t.evict(n)
	if len(t.ents) == 0 {
		t.text, t.base = t.text[:0], 0
	} else if cut := t.ents[0].off - t.base; cut > 0 && len(t.text)+len(name)+len(value) > cap(t.text) {
		t.text = t.text[:copy(t.text, t.text[cut:])]
		t.base += cut
	}
	e.off = t.base + uint32(len(t.text))
	e.nameLen, e.valueLen = uint16(len(name)), uint16(len(value))
	t.text = append(append(t.text, name...), value...)
	t.ents = append(t.ents, e)
	t.size += n
}

// evict makes room for n octets; for max, it leaves nothing.
func (t *table) evict(n uint32) {
	i := 0
	for ; i < len(t.ents) && t.size+n > t.max; i++ {
		t.size -= uint32(t.ents[i].nameLen) + uint32(t.ents[i].valueLen) + entrySize
	}
	if i > 0 {
		t.ents = t.ents[:copy(t.ents, t.ents[i:])]
	}
}

func (t *table) resize(max uint32) {
	t.max = max
	t.evict(0)
	if max == 0 {
		*t = table{}
	}
}

// head is a header section on its way in: the Endpoint's scratch.
type head struct {
	text   []byte
	fields []http1.Field
	limit  int  // of the section in the size that HTTP/1.1 would have
	names  int  // octets that names which literals take out of the tables may still count
	over   bool // the limit was exceeded: what came behind is left out
}

// Write takes what a Huffman code stood for.
func (h *head) Write(b []byte) (int, error) {
	h.text = append(h.text, b...)
	return len(b), nil
}

// maxFields bounds the fields of a section: some more than http1 accepts, so that it is http1 which rejects them.
const maxFields = 128

// put takes the field whose bytes are the end of h.text.
func (h *head) put(start, nameLen int) {
	if size := len(h.text) - start + len(": \r\n"); size > h.limit || len(h.fields) == maxFields || h.over {
		h.over = true
		h.text = h.text[:start]
		return
	} else {
		h.limit -= size
	}
	b := h.text[start:len(h.text):len(h.text)]
	h.fields = append(h.fields, http1.Field{Name: b[:nameLen:nameLen], Value: b[nameLen:]})
}

var (
	errCompression = &Error{CodeCompression, "malformed header block"}
	errLateSize    = &Error{CodeCompression, "table size update within a header block"}
)

// maxNames bounds the names that the literals of a block take out of the tables, each with its entrySize, as a multiple of
// the block's limit. Two octets may stand for 4000, or turn the whole table over, each time, and a section that is too
// large is read to its end nevertheless.
const maxNames = 4

// decode reads the block into h. However much a block stands for, it is decoded to no more than its own strings (8/5 of
// their length), maxNames times limit for the names that it refers to, and limit for whole fields.
func (t *table) decode(b []byte, h *head, limit int) *Error {
	h.text, h.fields, h.limit, h.names, h.over = h.text[:0], h.fields[:0], limit, maxNames*limit, false
	fresh := true // no field yet: the table's size may change
	for len(b) > 0 {
		c := b[0]
		var i uint32
		var ok bool
		switch {
		case c&0x80 != 0: // rfc7541#section-6.1: indexed field
			if i, b, ok = readInt(b, 7); !ok || !t.indexed(h, i) {
				return errCompression
			}
		case c&0xe0 == 0x20: // rfc7541#section-6.3: table size update
			if !fresh {
				return errLateSize
			}
			if i, b, ok = readInt(b, 5); !ok || i > tableSize {
				return errCompression
			}
			t.resize(i)
			continue
		default: // rfc7541#section-6.2: literal, indexed (01) or not (0000, 0001)
			prefix := 4
			if c&0x40 != 0 {
				prefix = 6
			}
			if i, b, ok = readInt(b, prefix); !ok {
				return errCompression
			}
			start := len(h.text)
			if i > 0 {
				ok = t.nameAt(h, i)
			} else {
				b, ok = h.readString(b)
			}
			if !ok {
				return errCompression
			}
			n := len(h.text) - start
			if i > 0 {
				if h.names -= n + entrySize; h.names < 0 {
					return errBlock
				}
			}
			if b, ok = h.readString(b); !ok {
				return errCompression
			}
			if prefix == 6 {
				t.add(entry{}, h.text[start:start+n], h.text[start+n:])
			}
			h.put(start, n)
		}
		fresh = false
	}
	return nil
}

// at returns entry i of the dynamic table, or nil.
func (t *table) at(i uint32) *entry {
	if i -= uint32(len(static)); i >= uint32(len(t.ents)) {
		return nil
	}
	return &t.ents[uint32(len(t.ents))-1-i]
}

// indexed takes field i of the tables.
func (t *table) indexed(h *head, i uint32) bool {
	start := len(h.text)
	n := 0
	switch {
	case i == 0:
		return false
	case i < uint32(len(static)):
		n = len(static[i][0])
		if h.over || n+len(static[i][1])+4 > h.limit { // a block may say this once for each of its octets
			h.over = true
			return true
		}
		h.text = append(append(h.text, static[i][0]...), static[i][1]...)
	default:
		e := t.at(i)
		if e == nil {
			return false
		}
		n = int(e.nameLen)
		if h.over || n+int(e.valueLen)+4 > h.limit {
			h.over = true
			return true
		}
		h.text = append(append(h.text, t.name(e)...), t.value(e)...)
	}
	h.put(start, n)
	return true
}

// nameAt appends the name of field i to h.text.
func (t *table) nameAt(h *head, i uint32) bool {
	if i < uint32(len(static)) {
		h.text = append(h.text, static[i][0]...)
		return true
	}
	e := t.at(i)
	if e == nil {
		return false
	}
	h.text = append(h.text, t.name(e)...)
	return true
}

// readString reads a string literal (rfc7541#section-5.2) to the end of h.text.
func (h *head) readString(b []byte) (rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, false
	}
	huffman := b[0]&0x80 != 0
	n, b, ok := readInt(b, 7)
	if !ok || n > uint32(len(b)) {
		return nil, false
	}
	if huffman {
		_, err := hpack.HuffmanDecode(h, b[:n])
		return b[n:], err == nil
	}
	h.text = append(h.text, b[:n]...)
	return b[n:], true
}

// readInt reads an integer with a prefix of that many bits (rfc7541#section-5.1), of less than 2^28.
func readInt(b []byte, prefix int) (i uint32, rest []byte, ok bool) {
	mask := uint32(1)<<prefix - 1
	i = uint32(b[0]) & mask
	if i < mask {
		return i, b[1:], true
	}
	for n := 1; n < len(b) && n <= 4; n++ {
		i += uint32(b[n]&0x7f) << (7 * (n - 1))
		if b[n]&0x80 == 0 {
			return i, b[n+1:], true
		}
	}
	return 0, nil, false
}

func appendInt(dst []byte, first byte, prefix int, i uint32) []byte {
	mask := uint32(1)<<prefix - 1
	if i < mask {
		return append(dst, first|byte(i))
	}
	dst = append(dst, first|byte(mask))
	for i -= mask; i >= 0x80; i >>= 7 {
		dst = append(dst, byte(i)|0x80)
	}
	return append(dst, byte(i))
}

func appendString(dst []byte, b []byte) []byte {
	if len(b) == 0 {
		return append(dst, 0)
	}
	s := unsafe.String(&b[0], len(b)) // read, not kept
	if n := hpack.HuffmanEncodeLength(s); n < uint64(len(b)) {
		return hpack.AppendHuffmanString(appendInt(dst, 0x80, 7, uint32(n)), s)
	}
	return append(appendInt(dst, 0, 7, uint32(len(b))), b...)
}

// encoder is a dynamic table, and what the peer has to be told about its size.
type encoder struct {
	table
	low    uint32 // the smallest size since the last block
	resize bool
}

// setMax takes the peer's bound.
func (t *encoder) setMax(max uint32) {
	if max = min(max, tableSize); max == t.max {
		return
	}
	if !t.resize {
		t.resize, t.low = true, t.max
	}
	t.low = min(t.low, max)
	t.table.resize(max)
}

// begin appends what a block starts with.
func (t *encoder) begin(dst []byte) []byte {
	if t.resize {
		t.resize = false
		if t.low < t.max { // rfc7541#section-4.2 wants to hear both. Down to 0, because x/net takes two for an empty table only
			t.evict(t.max)
			dst = append(dst, 0x20)
		}
		dst = appendInt(dst, 0x20, 5, t.max)
	}
	return dst
}

const (
	maxIndexed = 512 // octets of a field worth remembering
	maxSame    = 4   // fields of one name in the table: more than that change all the time
)

// field appends a field. The name must be in lower case.
func (t *encoder) field(dst []byte, name, value []byte) []byte {
	i, class := uint32(staticName[string(name)]), fieldClass(name)
	if class == never { // rfc7541#section-7.1.3
		return appendLiteral(dst, 0x10, 4, i, name, value)
	}
	for k := i; k > 0 && k < uint32(len(static)) && static[k][0] == string(name); k++ {
		if static[k][1] == string(value) && len(value) > 0 {
			return appendInt(dst, 0x80, 7, k)
		}
	}
	if class == volatile {
		return appendLiteral(dst, 0, 4, i, name, value)
	}
	e := entry{name: hash(2166136261, name)}
	e.field = hash(e.name^'=', value)
	same := 0
	for k := len(t.ents) - 1; k >= 0; k-- {
		o := &t.ents[k]
		if o.name != e.name || string(t.table.name(o)) != string(name) {
			continue
		}
		at := uint32(len(static) + len(t.ents) - 1 - k)
		if o.field == e.field && string(t.value(o)) == string(value) {
			return appendInt(dst, 0x80, 7, at)
		}
		if same++; i == 0 {
			i = at
		}
	}
	if same >= maxSame || len(name)+len(value) > maxIndexed || t.max < tableSize/8 {
		return appendLiteral(dst, 0, 4, i, name, value)
	}
	dst = appendLiteral(dst, 0x40, 6, i, name, value)
	t.add(e, name, value)
	return dst
}

func appendLiteral(dst []byte, first byte, prefix int, i uint32, name, value []byte) []byte {
	dst = appendInt(dst, first, prefix, i)
	if i == 0 {
		dst = appendString(dst, name)
	}
	return appendString(dst, value)
}

func hash(h uint32, b []byte) uint32 { // FNV-1a
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

const (
	steady   = iota // worth an entry
	volatile        // different each time
	never           // must not be in a table, here or behind a proxy
)

func fieldClass(name []byte) int {
	switch string(name) {
	case "authorization", "proxy-authorization", "cookie", "set-cookie":
		return never
	case ":path", "age", "content-length", "content-range", "date", "etag", "expires", "if-modified-since", "if-none-match",
		"last-modified", "location", "range", "referer", "x-forwarded-for", "x-real-ip", "forwarded":
		return volatile
	}
	return steady
}

// staticName is the first index of each name of the static table.
var staticName = func() map[string]uint8 {
	m := make(map[string]uint8, len(static))
	for i := len(static) - 1; i > 0; i-- {
		m[static[i][0]] = uint8(i)
	}
	return m
}()

// static is the static table of rfc7541#appendix-A.
var static = [...][2]string{
	{},
	{":authority", ""},
	{":method", "GET"},
	{":method", "POST"},
	{":path", "/"},
	{":path", "/index.html"},
	{":scheme", "http"},
	{":scheme", "https"},
	{":status", "200"},
	{":status", "204"},
	{":status", "206"},
	{":status", "304"},
	{":status", "400"},
	{":status", "404"},
	{":status", "500"},
	{"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"},
	{"accept-language", ""},
	{"accept-ranges", ""},
	{"accept", ""},
	{"access-control-allow-origin", ""},
	{"age", ""},
	{"allow", ""},
	{"authorization", ""},
	{"cache-control", ""},
	{"content-disposition", ""},
	{"content-encoding", ""},
	{"content-language", ""},
	{"content-length", ""},
	{"content-location", ""},
	{"content-range", ""},
	{"content-type", ""},
	{"cookie", ""},
	{"date", ""},
	{"etag", ""},
	{"expect", ""},
	{"expires", ""},
	{"from", ""},
	{"host", ""},
	{"if-match", ""},
	{"if-modified-since", ""},
	{"if-none-match", ""},
	{"if-range", ""},
	{"if-unmodified-since", ""},
	{"last-modified", ""},
	{"link", ""},
	{"location", ""},
	{"max-forwards", ""},
	{"proxy-authenticate", ""},
	{"proxy-authorization", ""},
	{"range", ""},
	{"referer", ""},
	{"refresh", ""},
	{"retry-after", ""},
	{"server", ""},
	{"set-cookie", ""},
	{"strict-transport-security", ""},
	{"transfer-encoding", ""},
	{"user-agent", ""},
	{"vary", ""},
	{"via", ""},
	{"www-authenticate", ""},
}
