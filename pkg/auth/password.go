package auth

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// What HashPassword asks of argon2id: the second of the choices that
// https://cheatsheetseries.owasp.org recommends, 30 ms and 19 MiB of a server.
const (
	hashMemory = 19 << 10 // KiB
	hashPasses = 2
	hashLanes  = 1
	hashSalt   = 16 // bytes
	hashKey    = 32 // bytes
)

// Bounds of a hash that somebody else has made. They are above what the usual tools
// choose (64 MiB and four passes), and below what would let a line in a file take a
// relay down.
const (
	MaxPassword = 1024 // bytes

	maxMemory = 128 << 10 // KiB
	maxPasses = 16
	maxLanes  = 16
	maxWork   = 512 << 10 // KiB times passes: less than a second
	maxCost   = 13        // of bcrypt: less than a second
)

// HashPassword returns the argon2id hash of a password, with a salt of its own, in the
// PHC string format: $argon2id$v=19$m=19456,t=2,p=1$salt$hash.
func HashPassword(password []byte) (string, error) {
	if len(password) == 0 || len(password) > MaxPassword {
		return "", fmt.Errorf("a password has 1 to %d bytes", MaxPassword)
	}
	salt := make([]byte, hashSalt)
	rand.Read(salt)
	key := argon2.IDKey(password, salt, hashPasses, hashMemory, hashLanes, hashKey)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashPasses, hashLanes,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key)), nil
}

// DigestRealm is the realm that HashDigest is given if there is no reason for another one. It is one for all, and not the
// name of a service or a host, so that a hash goes on being right when those change, and is right for several of them.
const DigestRealm = "culvert"

const maxRealm = 64 // bytes

// HashDigest returns what HTTP's and RTSP's Digest authentication needs of a password, which is all there is of it that can
// tell whether a visitor of a camera knows it: $digest$realm$md5$sha256, the hashes of user:realm:password in base64
// (rfc7616#section-3.4.2). It is as good as the password to whoever wants to come in, and is guessed fast.
func HashDigest(user, realm string, password []byte) (string, error) {
	switch {
	case len(password) == 0 || len(password) > MaxPassword:
		return "", fmt.Errorf("a password has 1 to %d bytes", MaxPassword)
	case user == "" || strings.Contains(user, ":"):
		return "", errors.New("a Digest hash is that of a user, whose name has no colon")
	case !isRealm(realm):
		return "", fmt.Errorf("realm %q: want 1 to %d visible ASCII characters and spaces, and no colon, quote, backslash or $", realm, maxRealm)
	}
	h := digestOf(user, realm, password)
	return fmt.Sprintf("$digest$%s$%s$%s", realm, base64.RawStdEncoding.EncodeToString(h.md5[:]), base64.RawStdEncoding.EncodeToString(h.sha256[:])), nil
}

// isRealm keeps what ends a realm in a hash, in A1 and in a header field out of it.
func isRealm(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || strings.IndexByte(":\"\\$", c) >= 0 {
			return false
		}
	}
	return s != "" && len(s) <= maxRealm && s == strings.TrimSpace(s)
}

// digest is what is kept of a password for Digest authentication.
type digest struct {
	realm  string
	md5    [md5.Size]byte
	sha256 [sha256.Size]byte
}

func digestOf(user, realm string, password []byte) *digest {
	a1 := append([]byte(user+":"+realm+":"), password...)
	return &digest{realm, md5.Sum(a1), sha256.Sum256(a1)}
}

func parseDigest(s string) (PasswordHash, error) {
	parts := strings.Split(s, "$") // "", digest, realm, md5, sha256
	if len(parts) != 5 || !isRealm(parts[2]) {
		return PasswordHash{}, errHash
	}
	d := &digest{realm: parts[2]}
	for i, sum := range [...][]byte{d.md5[:], d.sha256[:]} {
		b, err := base64.RawStdEncoding.Strict().DecodeString(parts[3+i])
		if err != nil || len(b) != len(sum) {
			return PasswordHash{}, errHash
		}
		copy(sum, b)
	}
	if strings.ContainsAny(s, "\r\n") { // which base64 passes over
		return PasswordHash{}, errHash
	}
	return PasswordHash{forDigest: d}, nil
}

// HA1 returns the hash of user, realm and password that Digest authentication by algorithm, "MD5" or "SHA-256", begins with,
// in hex, or "" if h is none of HashDigest or there is no such algorithm.
func (h PasswordHash) HA1(algorithm string) string {
	switch {
	case h.forDigest == nil:
	case algorithm == "MD5":
		return hex.EncodeToString(h.forDigest.md5[:])
	case algorithm == "SHA-256":
		return hex.EncodeToString(h.forDigest.sha256[:])
	}
	return ""
}

// Realm returns the realm of those of hashes, of users of one service, that are of HashDigest, or "" if there are none.
// A service has one realm, since visitors are asked for a password before they have said who they are.
func Realm(hashes map[string]PasswordHash) (string, error) {
	realm, first := "", ""
	for _, user := range slices.Sorted(maps.Keys(hashes)) {
		switch d := hashes[user].forDigest; {
		case d == nil:
		case realm == "":
			realm, first = d.realm, user
		case d.realm != realm:
			return "", fmt.Errorf("the Digest hash of user %q is for realm %q, and that of %q for %q: a service has one realm", user, d.realm, first, realm)
		}
	}
	return realm, nil
}

// A PasswordHash is what is kept of a password. The zero value is that of none.
type PasswordHash struct {
	forDigest    *digest // or nil
	bcrypt       []byte  // or nil
	memory       uint32  // KiB
	passes       uint32
	lanes        uint8
	salt, digest []byte
}

var (
	errHash     = errors.New("no hash of a password that is known: want argon2id ($argon2id$...), bcrypt ($2a$, $2b$, $2y$) or, for cameras, $digest$..., as `tunnelctl password` and `htpasswd -B` make them")
	errHashCost = errors.New("the hash asks for more memory or time than a relay spends on a password (128 MiB, 4 passes over it; bcrypt's cost 13): make it anew with `tunnelctl password`")
)

// ParsePasswordHash reads an argon2id hash in the PHC string format, or one of bcrypt or of HashDigest.
// It refuses parameters that would cost more than a relay can afford.
func ParsePasswordHash(s string) (PasswordHash, error) {
	switch {
	case strings.HasPrefix(s, "$2a$"), strings.HasPrefix(s, "$2b$"), strings.HasPrefix(s, "$2y$"):
		return parseBcrypt(s)
	case strings.HasPrefix(s, "$argon2id$"):
		return parseArgon2id(s)
	case strings.HasPrefix(s, "$digest$"):
		return parseDigest(s)
	}
	return PasswordHash{}, errHash
}

// bcryptAlphabet is what bcrypt writes salt and digest with.
const bcryptAlphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

func parseBcrypt(s string) (PasswordHash, error) {
	if len(s) != 60 || s[6] != '$' || strings.Trim(s[7:], bcryptAlphabet) != "" {
		return PasswordHash{}, errHash
	}
	cost, err := bcrypt.Cost([]byte(s))
	switch {
	case err != nil:
		return PasswordHash{}, errHash
	case cost > maxCost:
		return PasswordHash{}, errHashCost
	}
	return PasswordHash{bcrypt: []byte(s)}, nil
}

func parseArgon2id(s string) (PasswordHash, error) {
	parts := strings.Split(s, "$") // "", argon2id, v=19, m=...,t=...,p=..., salt, digest
	if len(parts) != 6 || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return PasswordHash{}, errHash
	}
	params := strings.Split(parts[3], ",")
	if len(params) != 3 {
		return PasswordHash{}, errHash
	}
	var n [3]uint32
	for i, name := range [...]string{"m=", "t=", "p="} {
		v, ok := strings.CutPrefix(params[i], name)
		u, err := strconv.ParseUint(v, 10, 32)
		if !ok || err != nil || u == 0 || v[0] == '0' || v[0] == '+' {
			return PasswordHash{}, errHash
		}
		n[i] = uint32(u)
	}
	switch {
	case n[0] > maxMemory || n[1] > maxPasses || n[2] > maxLanes || n[0]*n[1] > maxWork:
		return PasswordHash{}, errHashCost
	case n[0] < 8*n[2]: // rfc9106#section-3.1
		return PasswordHash{}, errHash
	}
	h := PasswordHash{memory: n[0], passes: n[1], lanes: uint8(n[2])}
	var err, e error
	h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	h.digest, e = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err != nil || e != nil || strings.ContainsAny(s, "\r\n") ||
		len(h.salt) < 8 || len(h.salt) > 64 || len(h.digest) < 16 || len(h.digest) > 64 {
		return PasswordHash{}, errHash
	}
	return h, nil
}

// Verify reports whether password is that of user, which only a hash of HashDigest looks at. It takes as long whether it
// is or not, some 10 ms to a second, but for those.
func (h PasswordHash) Verify(user string, password []byte) bool {
	if len(password) > MaxPassword {
		return false
	}
	if d := h.forDigest; d != nil {
		return subtle.ConstantTimeCompare(digestOf(user, d.realm, password).sha256[:], d.sha256[:]) == 1
	}
	if h.bcrypt != nil {
		return bcrypt.CompareHashAndPassword(h.bcrypt, password) == nil
	}
	if h.digest == nil {
		return false
	}
	digest := argon2.IDKey(password, h.salt, h.passes, h.memory, h.lanes, uint32(len(h.digest)))
	return subtle.ConstantTimeCompare(digest, h.digest) == 1
}

// maxHtpasswd bounds the lines of a file of users.
const maxHtpasswd = 1024

// ParseHtpasswd reads lines NAME:HASH, as `tunnelctl password` and Apache's `htpasswd -B`
// write them. Empty lines, and those that begin with #, are passed over. The error names
// the line.
func ParseHtpasswd(b []byte) (map[string]string, error) {
	users := make(map[string]string)
	n := 0
	for line := range bytes.Lines(b) {
		n++
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(text, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("line %d: want NAME:HASH", n)
		}
		if _, err := ParsePasswordHash(hash); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if _, ok := users[name]; ok {
			return nil, fmt.Errorf("line %d: this user has a line above", n)
		}
		if len(users) == maxHtpasswd {
			return nil, fmt.Errorf("line %d: more than %d users", n, maxHtpasswd)
		}
		users[name] = hash
	}
	return users, nil
}
