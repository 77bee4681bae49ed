package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

// [socks] says what operators reach; without it that is nothing, and they are told where it would be said.
func TestSocks(t *testing.T) {
	dir := t.TempDir()
	if _, err := auth.GenerateKey(filepath.Join(dir, "site.key")); err != nil {
		t.Fatal(err)
	}
	read := func(text string) (*settings, error) {
		t.Helper()
		file := filepath.Join(dir, "private.toml")
		if err := os.WriteFile(file, []byte("relay = \"relay.example.com\"\nsite = \"office\"\nkey = \"site.key\"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return load(file)
	}
	for _, test := range []struct{ config, address, code, want string }{
		{"", "10.0.0.5:22", "forbidden", "[socks] of its private.toml"},
		{"[socks]\nallow = []\n", "10.0.0.5:22", "forbidden", "services alone"},
		{"[socks]\nallow = \"10.0.0.0/8:22\"\n", "10.0.0.5:22", "", "10.0.0.5:22"},
		{"[socks]\nallow = [\"10.0.0.0/8:22\", \"[fd00::/8]:*\"]\n", "[fd00::5]:80", "", "[fd00::5]:80"},
		{"[socks]\nallow = [\"10.0.0.0/8:22\", \"*:80\"]\n", "127.0.0.1:80", "forbidden", "127.0.0.1:80 is not among"},
		{"[socks]\nallow = [\"10.0.0.0/8:22\"]\n", "10.0.0.5", "unreachable", "no HOST:PORT"},
		{"[socks]\nallow = [\"*.invalid:80\"]\n", "nobody.invalid:80", "unreachable", "nobody.invalid:80"},
	} {
		s, err := read(test.config)
		if err != nil {
			t.Fatal(err)
		}
		var r reachable
		r.rules.Store(s.socks)
		addrs, err := r.resolve(context.Background(), "tcp", test.address)
		var refused *relay.OperateError
		if errors.As(err, &refused) {
			if string(refused.Code) != test.code || !strings.Contains(refused.Text, test.want) {
				t.Errorf("%s: %+v", test.address, refused)
			}
		} else if err != nil || len(addrs) != 1 || addrs[0].String() != test.want {
			t.Errorf("%s: %v, %v", test.address, addrs, err)
		}
	}
	for config, want := range map[string]string{
		"[socks]\nallow = \"10.0.0.5\"":                "private.toml:5",
		"[socks]\nallow = [\"a:1\", \"10.0.0.1/8:1\"]": "is no prefix",
		"[socks]\nalow = \"10.0.0.5:1\"":               "allow",
	} {
		if _, err := read(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
}
