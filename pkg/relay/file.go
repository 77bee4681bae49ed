package relay

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what is said of files.
const (
	MaxFileName    = 255 // bytes of a file's name
	MaxFileVersion = 64  // bytes of a file's version
	MaxFileText    = 128 // bytes of an error's text
)

// Files says what visitors may do with the files of a service, and the relay with what they ask for. It is part of an
// announcement, and as strict as a Policy: a field that is not known makes it an error.
type Files struct {
	Write   string `json:"write,omitempty"`    // WriteNew, WriteReplace, or "": visitors write none
	MaxSize int64  `json:"max_size,omitempty"` // bytes of one that they write; 0: no bound
	Cache   bool   `json:"cache,omitempty"`    // what is read may be kept, and given to others when it is still what is there
}

// The values of Files.Write.
const (
	WriteNew     = "new"     // only those that are not there
	WriteReplace = "replace" // those that are there, too
)

// UnmarshalJSON takes what MarshalJSON writes, and nothing else.
func (f *Files) UnmarshalJSON(b []byte) error {
	type plain Files
	var q plain
	if err := decodeStrict(b, "files", &q); err != nil {
		return err
	}
	*f = Files(q)
	return nil
}

// validateFiles reports what is wrong with s as a service of files, or as one that is none.
func (s Service) validateFiles() error {
	scheme := s.Target.Scheme
	if s.Publish.Scheme != "tftp" {
		switch {
		case scheme == "tftp":
			return errors.New("a tftp:// target needs a tftp:// publish: the relays carry files there, and no datagrams")
		case (scheme == "http" || scheme == "https") && s.Target.Path != "":
			return fmt.Errorf("target %q: %w", s.Target, ErrTargetPath)
		case s.Files != nil:
			return errors.New("write, max_size and cache are for tftp:// publishes")
		}
		return nil
	}
	switch scheme {
	case "file", "tftp":
	case "http", "https":
		if s.Files != nil && s.Files.Write != "" {
			return fmt.Errorf("write is for file:// and tftp:// targets: an %s:// target is only read from", scheme)
		}
	default:
		return fmt.Errorf("a tftp:// publish needs a file://, tftp://, http:// or https:// target, not %s://", scheme)
	}
	if f := s.Files; f != nil {
		if f.Write != "" && f.Write != WriteNew && f.Write != WriteReplace {
			return fmt.Errorf("write %q is none of %q, %q", clip(f.Write), WriteNew, WriteReplace)
		}
		if f.MaxSize < 0 {
			return fmt.Errorf("max_size %d is negative", f.MaxSize)
		}
	}
	return nil
}

// ErrTargetPath is in the error of Validate for a target with a path where there can be none.
var ErrTargetPath = errors.New("leave the path out: the visitor's path reaches the target as it is")

// base checks the path of a target below which the files of a service are, and returns it without a slash at its end:
// "" or "/a/b". That of a tftp target is the beginning of names and has no escapes; it may begin with two slashes,
// "//srv", for a server that wants names to begin with one. That of an http or https target is as written.
func base(scheme, path string) (string, error) {
	path = strings.TrimSuffix(path, "/")
	if path == "" {
		return "", nil
	}
	rest := path[1:]
	if scheme == "tftp" {
		if strings.Contains(path, "%") {
			return "", fmt.Errorf("path %q: names of TFTP have no escapes, so there can be no '%%'", path)
		}
		rest = strings.TrimPrefix(rest, "/")
	}
	for seg := range strings.SplitSeq(rest, "/") {
		plain, err := url.PathUnescape(seg)
		if err != nil {
			return "", fmt.Errorf("path %q has a '%%' that is no escape: write %%25", path)
		}
		if plain == "" || plain == "." || plain == ".." || strings.ContainsAny(plain, "/\\\x00") {
			return "", fmt.Errorf("path %q has an empty, \".\" or \"..\" segment, or a slash or backslash in one", path)
		}
	}
	return path, nil
}

// Lets reports whether visitors of that address may come in, as Allow and Deny have it. p may be nil.
func (p *Policy) Lets(addr netip.Addr) bool {
	if p == nil {
		return true
	}
	addr = addr.Unmap().WithZone("")
	has := func(prefix netip.Prefix) bool { return prefix.Contains(addr) }
	return !slices.ContainsFunc(p.Deny, has) && (len(p.Allow) == 0 || slices.ContainsFunc(p.Allow, has))
}

// A FileRequest, on a stream of KindFile, asks for a file of a service, or announces one.
type FileRequest struct {
	Write bool   `json:"write,omitempty"`
	Name  string `json:"name"`           // below the service: "pxelinux.0", "images/vmlinuz". What it may be is the stores' matter
	Mode  string `json:"mode"`           // ModeOctet or ModeNetASCII
	Size  int64  `json:"size"`           // of what is written; -1: not known
	Have  string `json:"have,omitempty"` // of what is read: the version that is there already; "": none
}

// The values of FileRequest.Mode.
const (
	ModeOctet    = "octet"
	ModeNetASCII = "netascii"
)

// A FileReply answers a FileRequest; a second one says that what was written is safe.
type FileReply struct {
	Error   *FileError `json:"error,omitempty"`   // if not nil, nothing follows
	Size    int64      `json:"size"`              // of what is read; -1: not known
	Version string     `json:"version,omitempty"` // of what is read: changes when the file does; "": nobody can tell
	Same    bool       `json:"same,omitempty"`    // Version is the request's Have, and the file does not follow
}

// A FileError is why a file cannot be had or written, in the terms of TFTP.
type FileError struct {
	Code uint16 `json:"code"` // of rfc1350#appendix-I or rfc2347, at most 8
	Text string `json:"text"` // for the visitor
}

// AppendFile appends a FileRequest or a FileReply to dst as it is on a stream: behind its length in two bytes. v is
// valid.
func AppendFile[T FileRequest | FileReply](dst []byte, v T) []byte {
	b, err := json.Marshal(v)
	if err != nil || len(b) > MaxMessage {
		panic(fmt.Sprintf("BUG: %d bytes of a file's message, %v", len(b), err)) // there is nothing in these types that can fail
	}
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

// CutFile cuts what AppendFile has made from the beginning of b. If there is not all of it, message is nil. It fails as
// soon as it is longer than it may be.
func CutFile(b []byte) (message, rest []byte, err error) {
	if len(b) < 2 {
		return nil, b, nil
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > MaxMessage {
		return nil, nil, fmt.Errorf("file: a message of %d bytes, want 1 to %d", n, MaxMessage)
	}
	if len(b) < 2+n {
		return nil, b, nil
	}
	return b[2 : 2+n], b[2+n:], nil
}

// DecodeFileRequest decodes and checks a message.
func DecodeFileRequest(message []byte) (FileRequest, error) {
	var r FileRequest
	if err := decodeJSON(message, MaxMessage, "file request", &r); err != nil {
		return FileRequest{}, err
	}
	return r, r.Check()
}

// Check reports what is wrong with r.
func (r FileRequest) Check() error {
	switch {
	case r.Name == "" || len(r.Name) > MaxFileName || !utf8.ValidString(r.Name) || strings.Contains(r.Name, "\x00"):
		return errors.New("file request: malformed name")
	case r.Mode != ModeOctet && r.Mode != ModeNetASCII:
		return fmt.Errorf("file request: unknown mode %q", clip(r.Mode))
	case r.Size < -1 || !r.Write && r.Size != -1:
		return fmt.Errorf("file request: size %d", r.Size)
	case !isVersion(r.Have) || r.Write && r.Have != "":
		return errors.New("file request: malformed version")
	}
	return nil
}

// DecodeFileReply decodes and checks a message.
func DecodeFileReply(message []byte) (FileReply, error) {
	var r FileReply
	if err := decodeJSON(message, MaxMessage, "file reply", &r); err != nil {
		return FileReply{}, err
	}
	return r, r.Check()
}

// Check reports what is wrong with r.
func (r FileReply) Check() error {
	switch e := r.Error; {
	case r.Size < -1:
		return fmt.Errorf("file reply: size %d", r.Size)
	case !isVersion(r.Version):
		return errors.New("file reply: malformed version")
	case r.Same && (r.Version == "" || e != nil):
		return errors.New("file reply: the same as nothing")
	case e != nil && (e.Code > 8 || len(e.Text) > MaxFileText || !isPrintable(e.Text)):
		return errors.New("file reply: malformed error")
	}
	return nil
}

// isVersion reports whether s can be the version of a file.
func isVersion(s string) bool { return len(s) <= MaxFileVersion && isPrintable(s) }
