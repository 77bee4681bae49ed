package relay

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// A Hello is the first message on a link, from the private relay.
type Hello struct {
	Version   int    `json:"version"`            // WireVersion
	Site      string `json:"site"`               // name
	Key       string `json:"key"`                // public key, "ed25519:" and 32 bytes in standard base64 without padding
	Signature []byte `json:"signature"`          // 64 bytes, see auth.SignLink
	Session   string `json:"session,omitempty"`  // 16 bytes in hex: the session to resume, or ""
	Resume    string `json:"resume,omitempty"`   // 32 bytes in hex: the secret that came with it, or ""
	Software  string `json:"software,omitempty"` // for people: "culvert 1.2.3"

	Role   string `json:"role,omitempty"`   // what the link is for: RoleInteractive, RoleBulk or RoleDatagram; "" is the first
	Links  int    `json:"links,omitempty"`  // other links of the session that the private relay still has; 0: those that there were are dead
	Choice string `json:"choice,omitempty"` // for people: why the private relay uses the transports that it does

	Machine string `json:"machine,omitempty"` // 16 bytes in hex, the same as long as the private relay keeps its state; "" if it has none
	Process string `json:"process,omitempty"` // 16 bytes in hex, others after each start
}

// What a link may be for, in Hello.
const (
	RoleInteractive = "interactive" // what people wait for
	RoleBulk        = "bulk"        // streams that move much
	RoleDatagram    = "datagram"    // datagrams
)

// A Welcome answers a Hello. After one without Error the link carries the frames
// of the session.
type Welcome struct {
	Session  string   `json:"session,omitempty"` // 16 bytes in hex
	Resume   string   `json:"resume,omitempty"`  // 32 bytes in hex
	Resumed  bool     `json:"resumed,omitempty"` // the session that Hello asked for goes on
	Active   bool     `json:"active,omitempty"`  // the session gets the site's visitors; otherwise it stands by
	Software string   `json:"software,omitempty"`
	Error    *Refusal `json:"error,omitempty"` // if not nil, the other fields are empty and the link is closed
}

// A RefusalCode says why a relay refuses a link or a join.
type RefusalCode string

// The reasons for a refusal.
const (
	RefuseVersion     RefusalCode = "version"      // the other side is too old or too new
	RefuseMalformed   RefusalCode = "malformed"    // the message makes no sense
	RefuseUnknownSite RefusalCode = "unknown-site" // no such site
	RefuseBadKey      RefusalCode = "bad-key"      // the site has another key, or the proof is wrong
	RefuseRevoked     RefusalCode = "revoked"      // the site's key was revoked
	RefuseBadToken    RefusalCode = "bad-token"    // join only: unknown, used or expired
	RefuseBusy        RefusalCode = "busy"         // the site is active elsewhere, or the relay is full
	RefuseDraining    RefusalCode = "draining"     // the relay is shutting down
	RefuseForbidden   RefusalCode = "forbidden"    // an operator may not do this
	RefuseInternal    RefusalCode = "internal"
)

// A Refusal is what a public relay tells a private one that it does not accept. It
// travels; errors of our own are other types.
type Refusal struct {
	Code    RefusalCode `json:"code"`
	Message string      `json:"message"` // for the log of the other side; no secrets
	Retry   bool        `json:"retry"`   // may heal without anybody doing anything
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%s)", r.Message, r.Code) }

// An Announcement is one service in the JSON list that a private relay writes to
// an announce stream. Publish is text so that one service which this relay cannot
// publish does not spoil the others.
type Announcement struct {
	Name         string `json:"name"`
	Publish      string `json:"publish,omitempty"` // "": operators only
	TargetScheme string `json:"target_scheme"`

	Policy  *Policy `json:"policy,omitempty"`  // what is demanded of visitors; nil: nothing. Has still to be validated
	Camera  *Camera `json:"camera,omitempty"`  // how a camera is shown; nil unless the target is rtsp or rtsps. Has still to be validated
	Inspect bool    `json:"inspect,omitempty"` // operators may see heads and bodies of requests, and send them again. For HTTP

	Files *Files `json:"files,omitempty"` // what may be done with files; nil unless the publish is tftp. Has still to be validated
}

// An AnnounceReply is the answer to one Announcement.
type AnnounceReply struct {
	Name      string   `json:"name"`
	Error     string   `json:"error,omitempty"` // why the service is not published
	Addresses []string `json:"addresses,omitempty"`
}

// A JoinRequest redeems a join token: the public relay adds Key to the site that
// the token was made for.
type JoinRequest struct {
	Version  int    `json:"version"` // WireVersion
	Secret   []byte `json:"secret"`  // 32 bytes, from the token
	Key      string `json:"key"`     // as in Hello
	Software string `json:"software,omitempty"`
}

// A JoinResponse answers a JoinRequest.
type JoinResponse struct {
	Site    string   `json:"site,omitempty"`
	Publish []string `json:"publish,omitempty"` // patterns: what the site may publish
	Error   *Refusal `json:"error,omitempty"`   // if not nil, the other fields are empty
}

// Encode encodes a Hello, OperateHello, Welcome, JoinRequest, JoinResponse, []Announcement,
// []AnnounceReply, DiscoverRequest or DiscoverReply, whose Devices are JSON.
func Encode[T Hello | OperateHello | Welcome | JoinRequest | JoinResponse | []Announcement | []AnnounceReply | DiscoverRequest | DiscoverReply](v T) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: " + err.Error()) // there is nothing in these types that can fail
	}
	return b
}

// DecodeHello decodes and checks a Hello. The error is always a *Refusal, to be
// sent back.
func DecodeHello(b []byte) (Hello, error) {
	var h Hello
	if err := decodeJSON(b, MaxMessage, "hello", &h); err != nil {
		return Hello{}, malformed(err)
	}
	if err := checkVersion(h.Version); err != nil {
		return Hello{}, err
	}
	switch {
	case CheckName(h.Site) != nil:
		return Hello{}, malformed(fmt.Errorf("hello: site: %w", CheckName(h.Site)))
	case !isKey(h.Key):
		return Hello{}, malformed(errors.New("hello: malformed key"))
	case len(h.Signature) != 64:
		return Hello{}, malformed(fmt.Errorf("hello: signature of %d bytes", len(h.Signature)))
	case (h.Session == "") != (h.Resume == ""):
		return Hello{}, malformed(errors.New("hello: session and resume come together"))
	case h.Session != "" && (!isHex(h.Session, 16) || !isHex(h.Resume, 32)):
		return Hello{}, malformed(errors.New("hello: malformed session or resume"))
	case !isSoftware(h.Software):
		return Hello{}, malformed(errors.New("hello: malformed software"))
	case h.Role != "" && h.Role != RoleInteractive && h.Role != RoleBulk && h.Role != RoleDatagram:
		return Hello{}, malformed(errors.New("hello: unknown role"))
	case h.Links < 0:
		return Hello{}, malformed(fmt.Errorf("hello: %d links", h.Links))
	case len(h.Choice) > MaxChoice || !isPrintable(h.Choice):
		return Hello{}, malformed(errors.New("hello: malformed choice"))
	case h.Machine != "" && !isHex(h.Machine, 16) || h.Process != "" && !isHex(h.Process, 16):
		return Hello{}, malformed(errors.New("hello: malformed machine or process"))
	}
	return h, nil
}

// DecodeWelcome decodes and checks a Welcome.
func DecodeWelcome(b []byte) (Welcome, error) {
	var w Welcome
	if err := decodeJSON(b, MaxMessage, "welcome", &w); err != nil {
		return Welcome{}, err
	}
	if w.Error != nil {
		return Welcome{Error: w.Error}, w.Error.check("welcome")
	}
	if !isHex(w.Session, 16) || !isHex(w.Resume, 32) {
		return Welcome{}, errors.New("welcome: malformed session or resume")
	}
	if !isSoftware(w.Software) {
		return Welcome{}, errors.New("welcome: malformed software")
	}
	return w, nil
}

// DecodeJoinRequest decodes and checks a JoinRequest. The error is always a
// *Refusal, to be sent back.
func DecodeJoinRequest(b []byte) (JoinRequest, error) {
	var r JoinRequest
	if err := decodeJSON(b, MaxMessage, "join request", &r); err != nil {
		return JoinRequest{}, malformed(err)
	}
	if err := checkVersion(r.Version); err != nil {
		return JoinRequest{}, err
	}
	switch {
	case len(r.Secret) != 32:
		return JoinRequest{}, malformed(fmt.Errorf("join request: secret of %d bytes", len(r.Secret)))
	case !isKey(r.Key):
		return JoinRequest{}, malformed(errors.New("join request: malformed key"))
	case !isSoftware(r.Software):
		return JoinRequest{}, malformed(errors.New("join request: malformed software"))
	}
	return r, nil
}

// DecodeJoinResponse decodes and checks a JoinResponse.
func DecodeJoinResponse(b []byte) (JoinResponse, error) {
	var r JoinResponse
	if err := decodeJSON(b, MaxJoin, "join response", &r); err != nil {
		return JoinResponse{}, err
	}
	if r.Error != nil {
		return JoinResponse{Error: r.Error}, r.Error.check("join response")
	}
	if err := CheckName(r.Site); err != nil {
		return JoinResponse{}, fmt.Errorf("join response: site: %w", err)
	}
	for _, p := range r.Publish {
		if len(p) > MaxURL || !isPrintable(p) {
			return JoinResponse{}, fmt.Errorf("join response: malformed publish %q", clip(p))
		}
	}
	return r, nil
}

// DecodeAnnounce decodes a list of services. Names are valid and different from
// each other; a publish URL is bounded and has still to be parsed.
func DecodeAnnounce(b []byte) ([]Announcement, error) {
	var list []Announcement
	if err := decodeJSON(b, MaxAnnounce, "announce", &list); err != nil {
		return nil, err
	}
	if len(list) > MaxServices {
		return nil, fmt.Errorf("announce: %d services, more than %d", len(list), MaxServices)
	}
	seen := make(map[string]bool, len(list))
	for _, a := range list {
		if err := CheckName(a.Name); err != nil {
			return nil, fmt.Errorf("announce: %w", err)
		}
		if seen[a.Name] {
			return nil, fmt.Errorf("announce: service %q comes twice", a.Name)
		}
		seen[a.Name] = true
		if len(a.Publish) > MaxURL || len(a.TargetScheme) > 16 || !isPrintable(a.TargetScheme) {
			return nil, fmt.Errorf("announce: service %q: malformed publish or target scheme", a.Name)
		}
	}
	return list, nil
}

// DecodeAnnounceReply decodes the answers to an announcement.
func DecodeAnnounceReply(b []byte) ([]AnnounceReply, error) {
	var list []AnnounceReply
	if err := decodeJSON(b, MaxAnnounce, "announce reply", &list); err != nil {
		return nil, err
	}
	if len(list) > MaxServices {
		return nil, fmt.Errorf("announce reply: %d services, more than %d", len(list), MaxServices)
	}
	for _, r := range list {
		if err := CheckName(r.Name); err != nil {
			return nil, fmt.Errorf("announce reply: %w", err)
		}
	}
	return list, nil
}

func decodeJSON(b []byte, limit int, what string, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%s: %d bytes, more than %d", what, len(b), limit)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// decodeStrict decodes what has no field that v does not have.
func decodeStrict(b []byte, what string, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func malformed(err error) *Refusal {
	return &Refusal{Code: RefuseMalformed, Message: oneLine(err.Error())}
}

// checkVersion returns an error, not a *Refusal, so that a nil one is nil.
func checkVersion(v int) error {
	if v == WireVersion {
		return nil
	}
	older := "the public relay is older than the private one: update the public relay"
	if v < WireVersion {
		older = "the private relay is older than the public one: update the private relay"
	}
	return &Refusal{
		Code:    RefuseVersion,
		Message: fmt.Sprintf("the private relay speaks version %d, the public relay version %d; %s", v, WireVersion, older),
	}
}

func (r *Refusal) check(what string) error {
	if r.Code == "" || len(r.Code) > 32 || !isPrintable(string(r.Code)) {
		return fmt.Errorf("%s: malformed refusal code", what)
	}
	r.Message = oneLine(r.Message)
	return nil
}

// oneLine makes s fit for a log: at most 300 bytes of visible ASCII and spaces.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s[:min(len(s), 300)])
}

func isKey(s string) bool {
	raw, ok := strings.CutPrefix(s, "ed25519:")
	if !ok || len(raw) != base64.RawStdEncoding.EncodedLen(32) {
		return false
	}
	_, err := base64.RawStdEncoding.Strict().DecodeString(raw)
	return err == nil && !strings.ContainsAny(raw, "\r\n")
}

func isHex(s string, n int) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == 2*n
}

func isSoftware(s string) bool { return len(s) <= 128 && isPrintable(s) }
