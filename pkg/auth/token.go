package auth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	tokenPrefix  = "cvt_"
	tokenVersion = 1
	secretLen    = 32
	flagPin      = 1
)

// A Token lets somebody join a relay as a site, once. It is a secret.
//
//	"cvt_" base64url without padding of:
//	u8 version = 1
//	32 bytes        secret
//	u8 flags        1: a pin follows
//	32 bytes        pin, if flag 1 is set
//	u8 n, n bytes   relay, host:port
//	u8 n, n bytes   site
type Token struct {
	Secret []byte // 32 bytes
	Pin    []byte // 32 bytes, see Pin; nil if the relay's certificate is publicly trusted
	Relay  string // host:port
	Site   string
}

// String returns the token as people pass it on.
func (t Token) String() string {
	if len(t.Secret) != secretLen || t.Pin != nil && len(t.Pin) != sha256.Size || len(t.Relay) > 255 || len(t.Site) > 255 {
		panic("BUG: auth: token out of bounds")
	}
	b := append([]byte{tokenVersion}, t.Secret...)
	if t.Pin != nil {
		b = append(b, flagPin)
		b = append(b, t.Pin...)
	} else {
		b = append(b, 0)
	}
	for _, s := range [...]string{t.Relay, t.Site} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what Token.String returns; white space around it is ignored.
// Errors do not show the token.
func ParseToken(s string) (Token, error) {
	raw, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("token: want one that starts with %s", tokenPrefix)
	}
	if len(raw) > 1024 || strings.ContainsAny(raw, "\r\n") {
		return Token{}, errTokenDamaged
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(raw)
	if err != nil || len(b) == 0 {
		return Token{}, errTokenDamaged
	}
	if b[0] != tokenVersion {
		return Token{}, fmt.Errorf("token: version %d, this program knows %d; update it", b[0], tokenVersion)
	}
	if b = b[1:]; len(b) < secretLen+1 {
		return Token{}, errTokenDamaged
	}
	t := Token{Secret: b[:secretLen:secretLen]}
	flags := b[secretLen]
	b = b[secretLen+1:]
	if flags&^flagPin != 0 {
		return Token{}, errTokenDamaged
	}
	if flags&flagPin != 0 {
		if len(b) < sha256.Size {
			return Token{}, errTokenDamaged
		}
		t.Pin, b = b[:sha256.Size:sha256.Size], b[sha256.Size:]
	}
	for _, s := range [...]*string{&t.Relay, &t.Site} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return Token{}, errTokenDamaged
		}
		n := 1 + int(b[0])
		*s, b = string(b[1:n]), b[n:]
	}
	if len(b) != 0 || t.Relay == "" || t.Site == "" {
		return Token{}, errTokenDamaged
	}
	return t, nil
}

var errTokenDamaged = errors.New("token: damaged; copy all of it, without line breaks")
