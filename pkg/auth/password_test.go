package auth

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func TestPassword(t *testing.T) {
	s, err := HashPassword([]byte("correct horse"))
	if err != nil || !strings.HasPrefix(s, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("%q, %v", s, err)
	}
	h, err := ParsePasswordHash(s)
	if err != nil {
		t.Fatal(err)
	}
	if !h.Verify("alice", []byte("correct horse")) {
		t.Error("the password is not the one")
	}
	for _, wrong := range []string{"", "correct hors", "correct horse ", strings.Repeat("a", MaxPassword+1)} {
		if h.Verify("alice", []byte(wrong)) {
			t.Errorf("%.20q is taken", wrong)
		}
	}
	if other, _ := HashPassword([]byte("correct horse")); other == s {
		t.Error("two hashes have the same salt")
	}
	for _, bad := range []string{"", strings.Repeat("a", MaxPassword+1)} {
		if _, err := HashPassword([]byte(bad)); err == nil {
			t.Errorf("a password of %d bytes is hashed", len(bad))
		}
	}
	if (PasswordHash{}).Verify("", nil) {
		t.Error("no hash is that of no password")
	}
}

func TestDigest(t *testing.T) {
	// The user, realm and password of rfc2617#section-3.5, and what their MD5 is there.
	s, err := HashDigest("Mufasa", "testrealm@host.com", []byte("Circle Of Life"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParsePasswordHash(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	if got := h.HA1("MD5"); got != "939e7578ed9e3c518a452acee763bce9" {
		t.Errorf("HA1 by MD5 is %s", got)
	}
	// printf 'Mufasa:testrealm@host.com:Circle Of Life' | sha256sum
	if got := h.HA1("SHA-256"); got != "3ba6cd94661c5ef34598040c868f13b8775df29109986be50ad35ae537dd3aa4" {
		t.Errorf("HA1 by SHA-256 is %s", got)
	}
	if got := h.HA1("SHA-512-256"); got != "" {
		t.Errorf("HA1 by something else is %s", got)
	}
	// It is good for Basic, too.
	if !h.Verify("Mufasa", []byte("Circle Of Life")) {
		t.Error("the password is not the one")
	}
	if h.Verify("Mufasa", []byte("Circle of Life")) || h.Verify("Simba", []byte("Circle Of Life")) {
		t.Error("another password or another user's is taken")
	}
	if slow, _ := ParsePasswordHash(someHash); slow.HA1("MD5") != "" {
		t.Error("bcrypt has an HA1")
	}
	for _, tt := range []struct{ user, realm, password string }{
		{"", DigestRealm, "x"}, {"a:b", DigestRealm, "x"}, {"a", "", "x"}, {"a", "a$b", "x"}, {"a", "a:b", "x"}, {"a", `a"b`, "x"},
		{"a", " a", "x"}, {"a", strings.Repeat("a", maxRealm+1), "x"}, {"a", DigestRealm, ""}, {"a", DigestRealm, strings.Repeat("a", MaxPassword+1)},
	} {
		if s, err := HashDigest(tt.user, tt.realm, []byte(tt.password)); err == nil {
			t.Errorf("%q: %s", tt, s)
		}
	}
}

// The users of one service have one realm.
func TestRealm(t *testing.T) {
	hash := func(user, realm string) PasswordHash {
		s, err := HashDigest(user, realm, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParsePasswordHash(s)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	slow, err := ParsePasswordHash(someHash)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		hashes      map[string]PasswordHash
		realm, want string
	}{
		{nil, "", ""},
		{map[string]PasswordHash{"a": slow}, "", ""},
		{map[string]PasswordHash{"a": hash("a", "gate"), "b": slow, "c": hash("c", "gate")}, "gate", ""},
		{map[string]PasswordHash{"a": hash("a", "gate"), "b": slow, "c": hash("c", "yard")}, "", `user "c" is for realm "yard", and that of "a" for "gate"`},
	} {
		realm, err := Realm(tt.hashes)
		if realm != tt.realm || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q, %v, want %q, %q", realm, err, tt.realm, tt.want)
		}
	}
}

// What other programs have written.
func TestForeignHashes(t *testing.T) {
	for s, password := range map[string]string{
		// The reference implementation's own test.
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc": "password",
		// Openwall's tests of crypt_blowfish
		"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "U*U",
		"$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "U*U",
		"$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW": "U*U",
	} {
		h, err := ParsePasswordHash(s)
		if err != nil || !h.Verify("alice", []byte(password)) || h.Verify("alice", []byte(password+"x")) {
			t.Errorf("%s: %v", s, err)
		}
	}
	b, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParsePasswordHash(string(b)); err != nil || !h.Verify("alice", []byte("x")) {
		t.Errorf("%s: %v", b, err)
	}
}

func TestParsePasswordHash(t *testing.T) {
	const salt, digest = "c29tZXNhbHQ", "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	for _, tt := range []struct {
		hash string
		want error
	}{
		{"$argon2id$v=19$m=131072,t=4,p=4$" + salt + "$" + digest, nil},
		{"$argon2id$v=19$m=65536,t=8,p=16$" + salt + "$" + digest, nil},
		{"$argon2id$v=19$m=4194304,t=1,p=1$" + salt + "$" + digest, errHashCost}, // 4 GiB
		{"$argon2id$v=19$m=131072,t=5,p=1$" + salt + "$" + digest, errHashCost},
		{"$argon2id$v=19$m=8,t=17,p=1$" + salt + "$" + digest, errHashCost},
		{"$argon2id$v=19$m=1024,t=1,p=17$" + salt + "$" + digest, errHashCost},
		{"$argon2id$v=19$m=8,t=1,p=2$" + salt + "$" + digest, errHash},
		{"$argon2id$v=19$m=65536,t=0,p=1$" + salt + "$" + digest, errHash},
		{"$argon2id$v=19$m=065536,t=1,p=1$" + salt + "$" + digest, errHash},
		{"$argon2id$v=19$m=65536,t=1$" + salt + "$" + digest, errHash},
		{"$argon2id$v=19$t=1,m=65536,p=1$" + salt + "$" + digest, errHash},
		{"$argon2id$v=16$m=65536,t=1,p=1$" + salt + "$" + digest, errHash},
		{"$argon2id$m=65536,t=1,p=1$" + salt + "$" + digest, errHash},
		{"$argon2id$v=19$m=65536,t=1,p=1$" + salt + "$", errHash},
		{"$argon2id$v=19$m=65536,t=1,p=1$c2hvcnQ$" + digest, errHash},
		{"$argon2id$v=19$m=65536,t=1,p=1$" + salt + "$" + digest + "==", errHash},
		{"$argon2id$v=19$m=65536,t=1,p=1$" + salt + "$" + digest + "$", errHash},
		{"$argon2i$v=19$m=65536,t=1,p=1$" + salt + "$" + digest, errHash},
		{"$2y$13$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", nil},
		{"$2y$14$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", errHashCost},
		{"$2y$99$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", errHash},
		{"$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", errHash},
		{"$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe", errHash},
		{"$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyO:W", errHash},
		{"$digest$culvert$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", nil},
		{"$digest$culvert$k559eO2ePFGKRSrO52O86Q", errHash},
		{"$digest$culvert$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc$", errHash},
		{"$digest$culvert$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc$k559eO2ePFGKRSrO52O86Q", errHash},
		{"$digest$culvert$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPP\nc", errHash},
		{"$digest$$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", errHash},
		{"$digest$a\"b$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", errHash},
		{"$apr1$x$y", errHash},
		{"{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", errHash},
		{"secret", errHash},
		{"", errHash},
	} {
		if _, err := ParsePasswordHash(tt.hash); err != tt.want {
			t.Errorf("%s: %v, want %v", tt.hash, err, tt.want)
		}
	}
}

const someHash = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"

func TestHtpasswd(t *testing.T) {
	got, err := ParseHtpasswd([]byte("# staff\n\nalice:" + someHash + "\r\n  bob:" + someHash))
	if want := map[string]string{"alice": someHash, "bob": someHash}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	many := ""
	for i := range maxHtpasswd + 1 {
		many += fmt.Sprintf("u%d:%s\n", i, someHash)
	}
	for text, want := range map[string]string{
		"alice:" + someHash + "\nbob":                  "line 2: want NAME:HASH",
		":" + someHash:                                 "line 1: want NAME:HASH",
		"#\nalice:" + someHash + "\nalice:" + someHash: "line 3: this user has a line above",
		"alice:$apr1$x$y":                              "line 1: no hash of a password that is known",
		many:                                           "line 1025: more than 1024 users",
	} {
		if _, err := ParseHtpasswd([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

func FuzzParsePasswordHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	f.Add(someHash)
	f.Add("$digest$culvert$k559eO2ePFGKRSrO52O86Q$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParsePasswordHash(s)
		if err != nil {
			return
		}
		if d := h.forDigest; d != nil {
			if !isRealm(d.realm) || len(h.HA1("MD5")) != 32 || len(h.HA1("SHA-256")) != 64 {
				t.Fatalf("%q: %+v", s, d)
			}
			return
		}
		if h.bcrypt == nil && (h.memory*h.passes > maxWork || h.memory < 8 || len(h.digest) < 16 || len(h.salt) < 8) {
			t.Fatalf("%q: %+v", s, h)
		}
		if h.memory*h.passes <= 64 && h.bcrypt == nil { // what it accepts it can compute
			h.Verify("alice", []byte("x"))
		}
	})
}

func FuzzHtpasswd(f *testing.F) {
	f.Add([]byte("# staff\nalice:" + someHash + "\n"))
	f.Add([]byte("alice:x\nbob"))
	f.Fuzz(func(t *testing.T, b []byte) {
		users, err := ParseHtpasswd(b)
		if err != nil {
			return
		}
		text := ""
		for name, hash := range users {
			text += name + ":" + hash + "\n"
		}
		if again, err := ParseHtpasswd([]byte(text)); err != nil || !maps.Equal(users, again) {
			t.Fatalf("%q: %v, then %v, %v", b, users, again, err)
		}
	})
}
