package relay

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestFilesValidate(t *testing.T) {
	for _, tt := range []struct {
		publish, target string
		files           Files
		want            string
	}{
		{"tftp:///", "file:///srv", Files{}, ""},
		{"tftp:///", "file:///srv", Files{Write: WriteNew, MaxSize: 1, Cache: true}, ""},
		{"tftp:///", "tftp://10.0.0.7", Files{Write: WriteReplace}, ""},
		{"tftp:///", "http://10.0.0.8/a", Files{Cache: true}, ""},
		{"tftp:///", "http://10.0.0.8/a", Files{Write: WriteNew}, `service "boot": write is for file:// and tftp:// targets: an http:// target is only read from`},
		{"tftp:///", "file:///srv", Files{Write: "append"}, `service "boot": write "append" is none of "new", "replace"`},
		{"tftp:///", "file:///srv", Files{Write: WriteNew, MaxSize: -1}, `service "boot": max_size -1 is negative`},
		{"https://a.example.com", "file:///srv", Files{}, `service "boot": write, max_size and cache are for tftp:// publishes`},
		{"", "tcp://a:1", Files{}, "are for tftp:// publishes"},
	} {
		s := Service{Name: "boot", Files: &tt.files}
		if err := s.Publish.UnmarshalText([]byte(tt.publish)); err != nil {
			t.Fatal(err)
		}
		if err := s.Target.UnmarshalText([]byte(tt.target)); err != nil {
			t.Fatal(err)
		}
		err := s.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestPolicyLets(t *testing.T) {
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, p := range list {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	p := &Policy{Allow: prefixes("192.0.2.0/24", "2001:db8::/32"), Deny: prefixes("192.0.2.7/32")}
	for addr, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.7": false, "192.0.3.1": false, "::ffff:192.0.2.1": true, "::ffff:192.0.2.7": false,
		"2001:db8::1": true, "2001:db9::1": false,
	} {
		if got := p.Lets(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if a := netip.MustParseAddr("fe80::1%eth0"); !(&Policy{Allow: prefixes("fe80::/10")}).Lets(a) || (&Policy{Deny: prefixes("fe80::/10")}).Lets(a) {
		t.Error("an address with a zone is not in a prefix")
	}
	if a := netip.MustParseAddr("::1"); !(*Policy)(nil).Lets(a) || !(&Policy{}).Lets(a) || (&Policy{Allow: prefixes("0.0.0.0/0")}).Lets(a) {
		t.Error("who may come in is not who it says")
	}
}

// The golden vectors that docs/protocol.md shows.
func TestFileGolden(t *testing.T) {
	for want, r := range map[string]FileRequest{
		"\x00\x2e" + `{"name":"pxelinux.0","mode":"octet","size":-1}`:       {Name: "pxelinux.0", Mode: ModeOctet, Size: -1},
		"\x00\x34" + `{"write":true,"name":"a","mode":"netascii","size":7}`: {Write: true, Name: "a", Mode: ModeNetASCII, Size: 7},
	} {
		b := AppendFile([]byte("x"), r)[1:]
		if string(b) != want {
			t.Errorf("%+v is %q, want %q", r, b, want)
		}
		message, rest, err := CutFile(append(b, "file"...))
		if err != nil || string(rest) != "file" {
			t.Fatalf("%q, %q, %v", message, rest, err)
		}
		if got, err := DecodeFileRequest(message); err != nil || got != r {
			t.Errorf("%s: %+v, %v", message, got, err)
		}
	}
	for _, r := range []FileReply{
		{Size: 42, Version: "1-2-3"}, {Size: -1}, {Size: 42, Version: "1", Same: true},
		{Error: &FileError{Code: 1, Text: "File not found."}, Size: -1}, {},
	} {
		message, rest, err := CutFile(AppendFile(nil, r))
		if err != nil || len(rest) != 0 {
			t.Fatal(err)
		}
		if got, err := DecodeFileReply(message); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, %v", message, got, err)
		}
	}
}

// A message comes in pieces of any size, and is not waited for if it is too long.
func TestCutFile(t *testing.T) {
	b := AppendFile(nil, FileReply{Size: 1, Version: "v"})
	for i := range b {
		if message, rest, err := CutFile(b[:i]); message != nil || !bytes.Equal(rest, b[:i]) || err != nil {
			t.Errorf("%d bytes: %q, %q, %v", i, message, rest, err)
		}
	}
	for _, s := range []string{"\x00\x00", "\x10\x01", "\xff\xff{}"} {
		if _, _, err := CutFile([]byte(s)); err == nil {
			t.Errorf("%q is waited for", s)
		}
	}
	if message, _, err := CutFile(append([]byte{0x10, 0}, make([]byte, MaxMessage)...)); err != nil || len(message) != MaxMessage {
		t.Error("the longest message is refused")
	}
	// The largest that may be said fits, however it has to be written.
	r := FileRequest{Name: strings.Repeat("\x01", MaxFileName), Mode: ModeOctet, Size: -1, Have: strings.Repeat("<", MaxFileVersion)}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	AppendFile(nil, r)
	AppendFile(nil, FileReply{Version: strings.Repeat("<", MaxFileVersion), Error: &FileError{8, strings.Repeat("<", MaxFileText)}})
}

func TestFileBounds(t *testing.T) {
	ok := FileRequest{Name: "a", Mode: ModeOctet, Size: -1}
	for name, spoil := range map[string]func(*FileRequest){
		"no name":         func(r *FileRequest) { r.Name = "" },
		"long name":       func(r *FileRequest) { r.Name = strings.Repeat("a", 256) },
		"no UTF-8":        func(r *FileRequest) { r.Name = "\xff" },
		"NUL":             func(r *FileRequest) { r.Name = "a\x00b" },
		"mode":            func(r *FileRequest) { r.Mode = "mail" },
		"size":            func(r *FileRequest) { r.Write, r.Size = true, -2 },
		"size of a read":  func(r *FileRequest) { r.Size = 0 },
		"version":         func(r *FileRequest) { r.Have = "a\nb" },
		"long version":    func(r *FileRequest) { r.Have = strings.Repeat("a", 65) },
		"version, writes": func(r *FileRequest) { r.Write, r.Have = true, "a" },
	} {
		r := ok
		spoil(&r)
		if r.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, r := range map[string]FileReply{
		"size":           {Size: -2},
		"version":        {Version: "\xff"},
		"long version":   {Version: strings.Repeat("a", 65)},
		"same, no file":  {Same: true},
		"same and error": {Same: true, Version: "a", Error: &FileError{}},
		"code":           {Error: &FileError{Code: 9}},
		"text":           {Error: &FileError{Text: "a\nb"}},
		"long text":      {Error: &FileError{Text: strings.Repeat("a", 129)}},
	} {
		if r.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, s := range []string{"", "[]", `{"name":1}`, `{"name":"a","mode":"octet","size":1e99}`, `{"name":"a","mode":"octet"}`} {
		if _, err := DecodeFileRequest([]byte(s)); err == nil {
			t.Errorf("%q is a request", s)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add(AppendFile(nil, FileRequest{Name: "boot/pxelinux.cfg/01-00-0c", Mode: ModeOctet, Size: -1, Have: "1-2"}))
	f.Add(AppendFile(nil, FileRequest{Write: true, Name: "sw1-confg", Mode: ModeNetASCII, Size: 1 << 40}))
	f.Add(AppendFile(nil, FileReply{Error: &FileError{2, "Access violation."}, Size: -1}))
	f.Add(AppendFile(nil, FileReply{Size: 7, Version: `"5f-62"`, Same: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		message, rest, err := CutFile(b)
		if err != nil || message == nil {
			return
		}
		if len(message) > MaxMessage || 2+len(message)+len(rest) != len(b) {
			t.Fatalf("%d bytes are a message of %d and %d", len(b), len(message), len(rest))
		}
		if r, err := DecodeFileRequest(message); err == nil {
			message, _, _ := CutFile(AppendFile(nil, r))
			if again, err := DecodeFileRequest(message); err != nil || again != r {
				t.Errorf("%+v, then %+v, %v", r, again, err)
			}
		}
		if r, err := DecodeFileReply(message); err == nil {
			message, _, _ := CutFile(AppendFile(nil, r))
			if again, err := DecodeFileReply(message); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v, then %+v, %v", r, again, err)
			}
		}
	})
}
