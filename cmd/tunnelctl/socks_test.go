package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/operate"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/socks"
)

// The login is one line of a file, and compared as a whole.
func TestSocksLogin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "login")
	for text, ok := range map[string]bool{
		"me:s3cret\n": true, "me:s3:cret": true, "me:s3cret\r\n": true,
		"": false, "me": false, ":x": false, "me:": false, "me:a\nyou:b\n": false, strings.Repeat("a", 256) + ":b": false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		login, err := readLogin(file)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if !ok {
			continue
		}
		user, password, _ := strings.Cut(strings.TrimSpace(text), ":")
		if !login(user, password) || login(user, password+"x") || login(user+"x", password) || login("", "") || login(user+":", password) {
			t.Errorf("%q: who may log in", text)
		}
	}
	if login, err := readLogin(""); login != nil || err != nil {
		t.Error("a login without a file")
	}
	if _, err := readLogin(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there has a login")
	}
	for address, want := range map[string]bool{"127.0.0.1:1": true, "localhost:1": true, "[::1]:1": true, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.5:1": false, "host:1": false} {
		if isLoopback(address) != want {
			t.Error(address)
		}
	}
}

// Programs are told by SOCKS what was wrong, as far as it has words for that.
func TestSocksReply(t *testing.T) {
	for code, want := range map[relay.OperateCode]socks.Reply{
		relay.OperateForbidden: socks.NotAllowed, relay.OperateUnreachable: socks.HostUnreachable, relay.OperateRefused: socks.Refused,
		relay.OperateTimeout: socks.Expired, relay.OperateAway: socks.NetworkUnreachable, relay.OperateInternal: socks.Failed, "new": socks.Failed,
	} {
		if got := socksReply(&operate.Error{Code: code}); got != want {
			t.Errorf("%s: %d", code, got)
		}
	}
	if socksReply(errors.New("x")) != socks.Failed {
		t.Error("another error")
	}
}

// What other machines reach has a login; a site that is not there is told at once.
func TestSocksRefused(t *testing.T) {
	o := startOffice(t)
	if code, _, stderr := o.run("", "socks", "office", "0.0.0.0:0"); code != 2 || !strings.Contains(stderr, "--login-file") {
		t.Errorf("%d %s", code, stderr)
	}
	if code, _, stderr := o.run("", "socks", "nowhere", "0"); code != exitNotFound || !strings.Contains(stderr, "nowhere") {
		t.Errorf("%d %s", code, stderr)
	}
	if code, _, stderr := o.run("", "socks", "office", "port"); code != 2 || !strings.Contains(stderr, "port") {
		t.Errorf("%d %s", code, stderr)
	}
}
