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
	if !h.Verify([]byte("correct horse")) {
		t.Error("the password is not the one")
	}
	for _, wrong := range []string{"", "correct hors", "correct horse ", strings.Repeat("a", MaxPassword+1)} {
		if h.Verify([]byte(wrong)) {
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
	if (PasswordHash{}).Verify(nil) {
		t.Error("no hash is that of no password")
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
		if err != nil || !h.Verify([]byte(password)) || h.Verify([]byte(password+"x")) {
			t.Errorf("%s: %v", s, err)
		}
	}
	b, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParsePasswordHash(string(b)); err != nil || !h.Verify([]byte("x")) {
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
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParsePasswordHash(s)
		if err != nil {
			return
		}
		if h.bcrypt == nil && (h.memory*h.passes > maxWork || h.memory < 8 || len(h.digest) < 16 || len(h.salt) < 8) {
			t.Fatalf("%q: %+v", s, h)
		}
		if h.memory*h.passes <= 64 && h.bcrypt == nil { // what it accepts it can compute
			h.Verify([]byte("x"))
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
