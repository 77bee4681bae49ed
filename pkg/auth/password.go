package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
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

// A PasswordHash is what is kept of a password. The zero value is that of none.
type PasswordHash struct {
	bcrypt       []byte // or nil
	memory       uint32 // KiB
	passes       uint32
	lanes        uint8
	salt, digest []byte
}

var (
	errHash     = errors.New("no hash of a password that is known: want argon2id ($argon2id$...) or bcrypt ($2a$, $2b$, $2y$), as `tunnelctl password` and `htpasswd -B` make them")
	errHashCost = errors.New("the hash asks for more memory or time than a relay spends on a password (128 MiB, 4 passes over it; bcrypt's cost 13): make it anew with `tunnelctl password`")
)

// ParsePasswordHash reads an argon2id hash in the PHC string format, or one of bcrypt.
// It refuses parameters that would cost more than a relay can afford.
func ParsePasswordHash(s string) (PasswordHash, error) {
	switch {
	case strings.HasPrefix(s, "$2a$"), strings.HasPrefix(s, "$2b$"), strings.HasPrefix(s, "$2y$"):
		return parseBcrypt(s)
	case strings.HasPrefix(s, "$argon2id$"):
		return parseArgon2id(s)
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

// Verify reports whether password is the one. It takes as long whether it is or not,
// some 10 ms to a second, and as much memory as Memory says.
func (h PasswordHash) Verify(password []byte) bool {
	if len(password) > MaxPassword {
		return false
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
