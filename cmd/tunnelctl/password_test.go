package main

import (
	"bytes"
	"strings"
	"testing"

	"culvert.dev/pkg/auth"
)

func TestPassword(t *testing.T) {
	run := func(stdin string, args ...string) (stdout, stderr string, code int) {
		var out, err bytes.Buffer
		code = command(t.Context(), append([]string{"password"}, args...), strings.NewReader(stdin), &out, &err)
		return out.String(), err.String(), code
	}
	// A line for a file of users; everything else is on stderr, so that >> works.
	out, hint, code := run("correct horse\r\nrest\n", "alice")
	name, hash, _ := strings.Cut(strings.TrimSuffix(out, "\n"), ":")
	h, err := auth.ParsePasswordHash(hash)
	if code != 0 || name != "alice" || err != nil || !h.Verify("alice", []byte("correct horse")) {
		t.Errorf("%d, %q, %v", code, out, err)
	}
	if !strings.Contains(hint, "users_file") {
		t.Errorf("stderr says %q", hint)
	}
	out, hint, code = run("secret")
	h, err = auth.ParsePasswordHash(strings.TrimSuffix(out, "\n"))
	if code != 0 || err != nil || !h.Verify("alice", []byte("secret")) || !strings.Contains(hint, "users = ") {
		t.Errorf("%d, %q, %q, %v", code, out, hint, err)
	}
	out, _, code = run("secret", "--digest", "alice")
	want, err := auth.HashDigest("alice", "culvert", []byte("secret"))
	if code != 0 || err != nil || out != "alice:"+want+"\n" {
		t.Errorf("%d, %q, want %q, %v", code, out, want, err)
	}
	if other, _, code := run("secret", "--digest", "--realm", "gate", "alice"); code != 0 || other == out || !strings.HasPrefix(other, "alice:$digest$gate$") {
		t.Errorf("%d, %q", code, other)
	}
	for _, tt := range []struct {
		stdin string
		args  []string
		want  string
	}{
		{"", nil, "no password"},
		{"\n", nil, "no password"},
		{strings.Repeat("a", 5000), nil, "buffer full"},
		{strings.Repeat("a", 2000) + "\n", nil, "1 to 1024 bytes"},
		{"x", []string{"a:b"}, "no colon"},
		{"x", []string{"--digest"}, "name the user"},
		{"x", []string{"--realm", "gate", "alice"}, "--realm is for --digest"},
		{"x", []string{"--digest", "--realm", "a:b", "alice"}, "no colon, quote"},
		{"x", []string{"alice", "secret"}, "at most 1 arg"},
	} {
		out, msg, code := run(tt.stdin, tt.args...)
		if code == 0 || out != "" || !strings.Contains(msg, tt.want) {
			t.Errorf("%.20q %q: %d, %q, %q", tt.stdin, tt.args, code, out, msg)
		}
	}
}
