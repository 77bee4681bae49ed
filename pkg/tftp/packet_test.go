package tftp

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// Requests as these clients send them.
var captured = map[string]string{
	"tftp-hpa":         "\x00\x01f1m\x00octet\x00",
	"tftp-hpa ascii":   "\x00\x01text.txt\x00netascii\x00",
	"tftp-hpa put":     "\x00\x02up/p1\x00octet\x00",
	"atftp":            "\x00\x01f1m\x00octet\x00tsize\x000\x00blksize\x001468\x00timeout\x002\x00windowsize\x0016\x00",
	"curl":             "\x00\x01f1m\x00octet\x00tsize\x000\x00blksize\x00512\x00timeout\x006\x00",
	"curl put":         "\x00\x02up/p2\x00octet\x00tsize\x001048576\x00blksize\x00512\x00timeout\x006\x00",
	"busybox":          "\x00\x01f1m\x00octet\x00tsize\x000\x00blksize\x0065464\x00",
	"iPXE":             "\x00\x01boot.ipxe\x00octet\x00blksize\x001432\x00tsize\x000\x00",
	"EDK2":             "\x00\x01EFI/BOOTX64.EFI\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00",
	"upper case":       "\x00\x01A\x00OCTET\x00BLKSIZE\x001024\x00TSize\x000\x00",
	"padded with NULs": "\x00\x01pxelinux.0\x00octet\x00tsize\x000\x00\x00\x00\x00",
}

func TestParseRequest(t *testing.T) {
	want := map[string]Request{
		"tftp-hpa":         {Op: OpRead, Name: "f1m"},
		"tftp-hpa ascii":   {Op: OpRead, Name: "text.txt", Mode: NetASCII},
		"tftp-hpa put":     {Op: OpWrite, Name: "up/p1"},
		"atftp":            {Op: OpRead, Name: "f1m", Options: Options{Block: 1468, Window: 16, Timeout: 2, HasSize: true}},
		"curl":             {Op: OpRead, Name: "f1m", Options: Options{Block: 512, Timeout: 6, HasSize: true}},
		"curl put":         {Op: OpWrite, Name: "up/p2", Options: Options{Block: 512, Timeout: 6, Size: 1 << 20, HasSize: true}},
		"busybox":          {Op: OpRead, Name: "f1m", Options: Options{Block: 65464, HasSize: true}},
		"iPXE":             {Op: OpRead, Name: "boot.ipxe", Options: Options{Block: 1432, HasSize: true}},
		"EDK2":             {Op: OpRead, Name: "EFI/BOOTX64.EFI", Options: Options{Block: 1468, Window: 4, HasSize: true}},
		"upper case":       {Op: OpRead, Name: "A", Options: Options{Block: 1024, HasSize: true}},
		"padded with NULs": {Op: OpRead, Name: "pxelinux.0", Options: Options{HasSize: true}},
	}
	for client, packet := range captured {
		r, err := ParseRequest([]byte(packet))
		if err != nil || r != want[client] {
			t.Errorf("%s: %+v, %v; want %+v", client, r, err, want[client])
		}
	}
}

func TestParseOptions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		in    string
		want  Options
		clean bool
	}{
		{"none", "", Options{}, true},
		{"bounds", "blksize\x008\x00windowsize\x001\x00timeout\x001\x00rollover\x000\x00", Options{Block: 8, Window: 1, Timeout: 1, HasRollover: true}, true},
		{"the most", "blksize\x0065464\x00windowsize\x0065535\x00timeout\x00255\x00tsize\x009223372036854775806\x00rollover\x001\x00",
			Options{Block: 65464, Window: 65535, Timeout: 255, Size: 1<<63 - 2, HasSize: true, Rollover: 1, HasRollover: true}, true},
		{"more than the most", "blksize\x0070000\x00windowsize\x0099999999999999999999\x00", Options{Block: 65464, Window: 65535}, true},
		{"too little", "blksize\x007\x00windowsize\x000\x00timeout\x000\x00", Options{}, false},
		{"too much", "timeout\x00256\x00rollover\x002\x00tsize\x009223372036854775808\x00", Options{}, false},
		{"no numbers", "blksize\x00-512\x00windowsize\x00+4\x00timeout\x00\x00tsize\x000x10\x00rollover\x001 \x00", Options{}, false},
		{"leading zeros", "blksize\x0000001024\x00", Options{Block: 1024}, true},
		{"unknown", "multicast\x00\x00blksize\x001024\x00blksize2\x0064\x00", Options{Block: 1024}, false},
		{"twice: the first counts", "blksize\x001024\x00blksize\x002048\x00", Options{Block: 1024}, false},
		{"no value", "blksize\x001024\x00tsize\x00", Options{Block: 1024}, false},
		{"no end", "blksize\x001024", Options{}, false},
		{"padding", "blksize\x001024\x00\x00\x00\x00", Options{Block: 1024}, true},
	} {
		var o Options
		if clean := o.parse([]byte(tt.in)); o != tt.want || clean != tt.clean {
			t.Errorf("%s: %+v %t, want %+v %t", tt.name, o, clean, tt.want, tt.clean)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	for name, packet := range map[string]string{
		"empty":     "",
		"one byte":  "\x00",
		"DATA":      "\x00\x03\x00\x01x",
		"no name":   "\x00\x01\x00octet\x00",
		"no mode":   "\x00\x01x\x00",
		"no end":    "\x00\x01x\x00octet",
		"mail":      "\x00\x02root\x00mail\x00",
		"some mode": "\x00\x01x\x00octets\x00",
		"too long":  "\x00\x01" + strings.Repeat("x", 504) + "\x00octet\x00",
	} {
		_, err := ParseRequest([]byte(packet))
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeIllegal || e.Text == "" || e.Remote {
			t.Errorf("%s: %v, want an error to answer with", name, err)
		}
	}
	longest := "\x00\x01" + strings.Repeat("x", 503) + "\x00octet\x00"
	if _, err := ParseRequest([]byte(longest)); err != nil {
		t.Errorf("%d bytes: %v", len(longest), err)
	}
}

func TestErrorPackets(t *testing.T) {
	e := &Error{Code: CodeNotFound, Text: "There is no such file."}
	for most, want := range map[int]string{
		512: "\x00\x05\x00\x01There is no such file.\x00",
		10:  "\x00\x05\x00\x01There\x00",
		5:   "\x00\x05\x00\x01\x00",
		0:   "\x00\x05\x00\x01\x00",
		-1:  "\x00\x05\x00\x01\x00",
	} {
		if got := AppendError(nil, e, most); string(got) != want {
			t.Errorf("in %d bytes: %q", most, got)
		}
	}
	if got := AppendError(nil, &Error{Text: "a\x00b" + strings.Repeat("x", 200)}, 512); string(got) != "\x00\x05\x00\x00a\x00" {
		t.Errorf("a text with a NUL: %q", got)
	}
	for in, want := range map[string]*Error{
		"\x00\x05\x00\x01gone\x00":              {Code: CodeNotFound, Text: "gone", Remote: true},
		"\x00\x05\x00\x01gone":                  {Code: CodeNotFound, Text: "gone", Remote: true},
		"\x00\x05\x01\x00\x1b[31mred\xff\x00ab": {Code: 256, Text: "?[31mred?", Remote: true},
		"\x00\x05\x00\x02":                      {Code: CodeAccess, Remote: true},
		"\x00\x05\x00":                          nil,
	} {
		e, ok := parseError([]byte(in))
		if ok != (want != nil) || ok && *e != *want {
			t.Errorf("%q: %+v", in, e)
		}
	}
	if e, _ := parseError([]byte("\x00\x05\x00\x00" + strings.Repeat("x", 600))); len(e.Text) != maxText {
		t.Errorf("the text of an ERROR is kept with %d bytes", len(e.Text))
	}
}

func TestWindow(t *testing.T) {
	for _, tt := range [][3]int{
		{512, 1, 1}, {512, 0, 1}, {512, 65535, 64}, {1024, 64, 64}, {1468, 64, 44}, {1468, 16, 16}, {4096, 64, 16},
		{8192, 16, 8}, {65464, 16, 1}, {8, 1000, 64}, {0, 4, 4}, {512, -1, 1},
	} {
		if got := Window(tt[0], tt[1]); got != tt[2] {
			t.Errorf("Window(%d, %d) is %d, want %d", tt[0], tt[1], got, tt[2])
		}
	}
}

func TestCleanName(t *testing.T) {
	for in, want := range map[string]string{
		"x":                             "x",
		"/boot//./x":                    "boot/x",
		"boot/x":                        "boot/x",
		"./x/":                          "x",
		"a b/ü/01-aa-bb:cc":             "a b/ü/01-aa-bb:cc",
		"...":                           "...",
		"..x/x..":                       "..x/x..",
		"/" + strings.Repeat("x", 255):  strings.Repeat("x", 255),
		"1:x":                           "1:x",
		"":                              "",
		"/":                             "",
		"./.":                           "",
		"..":                            "",
		"../x":                          "",
		"a/../x":                        "",
		"a/..":                          "",
		"a\x00b":                        "",
		"a\nb":                          "",
		"a\x7f":                         "",
		"a\u0085":                       "",
		"a\xff":                         "",
		`a\b`:                           "",
		`..\x`:                          "",
		"C:x":                           "",
		"/c:/x":                         "",
		"./z:":                          "",
		strings.Repeat("x", 256):        "",
		strings.Repeat("x/", 128) + "x": "",
	} {
		got, err := CleanName(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Code != CodeAccess) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestNetASCII(t *testing.T) {
	for text, net := range map[string]string{
		"":            "",
		"one":         "one",
		"one\ntwo\n":  "one\r\ntwo\r\n",
		"a\rb\r":      "a\r\x00b\r\x00",
		"dos\r\n\r\n": "dos\r\x00\r\n\r\x00\r\n",
		"\r\r\n\n":    "\r\x00\r\x00\r\n\r\n",
	} {
		var enc EncodeNetASCII
		if got := enc.Append(nil, []byte(text)); string(got) != net {
			t.Errorf("%q is encoded as %q, want %q", text, got, net)
		}
		for cut := 0; cut <= len(net); cut++ { // anywhere
			var dec DecodeNetASCII
			got := dec.Append(nil, []byte(net[:cut]))
			got = dec.End(dec.Append(got, []byte(net[cut:])))
			if string(got) != text {
				t.Errorf("%q, cut at %d, is decoded as %q, want %q", net, cut, got, text)
			}
		}
	}
	var dec DecodeNetASCII // what no encoder makes
	if got := dec.End(dec.Append(nil, []byte("a\rb\r\r\nc\r"))); string(got) != "a\rb\r\nc\r" {
		t.Errorf("a CR alone is decoded as %q", got)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, packet := range captured {
		f.Add([]byte(packet))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("%v cannot be answered", err)
			}
			return
		}
		again, err := ParseRequest(r.Append(nil))
		if err != nil || again != r {
			t.Fatalf("%+v is parsed again as %+v, %v", r, again, err)
		}
		if len(r.Append(nil)) > len(b) {
			t.Fatalf("%q grows to %q", b, r.Append(nil))
		}
	})
}

func FuzzParseError(f *testing.F) {
	f.Add([]byte("\x00\x05\x00\x01File not found\x00"))
	f.Add([]byte("\x00\x05\x00\x08\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := parseError(b)
		if !ok {
			return
		}
		again, ok := parseError(AppendError(nil, e, MaxRequest))
		if !ok || *again != *e {
			t.Fatalf("%+v is parsed again as %+v", e, again)
		}
	})
}

func FuzzCleanName(f *testing.F) {
	for _, name := range []string{"/boot//./x", "..", "C:/x", `a\b`, "pxelinux.cfg/01-88-99-aa-bb-cc-dd"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := CleanName(name)
		if err != nil {
			return
		}
		if again, err := CleanName(clean); again != clean || err != nil {
			t.Fatalf("%q is cleaned to %q, and that to %q, %v", name, clean, again, err)
		}
		if strings.HasPrefix(clean, "/") || strings.Contains("/"+clean+"/", "/../") || len(clean) > maxName {
			t.Fatalf("%q is cleaned to %q", name, clean)
		}
	})
}

func FuzzNetASCII(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\r"), uint(3))
	f.Fuzz(func(t *testing.T, text []byte, cut uint) {
		var enc EncodeNetASCII
		net := enc.Append(nil, text)
		if len(net) > 2*len(text) {
			t.Fatalf("%q grows to %q", text, net)
		}
		c := int(cut % uint(len(net)+1))
		var dec DecodeNetASCII
		if got := dec.End(dec.Append(dec.Append(nil, net[:c]), net[c:])); !bytes.Equal(got, text) {
			t.Fatalf("%q comes back as %q", text, got)
		}
	})
}
