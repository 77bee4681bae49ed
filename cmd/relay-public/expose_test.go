package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
)

func patterns(t *testing.T, texts ...string) (list []relay.Pattern) {
	t.Helper()
	for _, text := range texts {
		p, err := relay.ParsePattern(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// What operators expose is bounded, belongs to them, and is forgotten.
func TestExposed(t *testing.T) {
	operators, err := auth.OpenOperators(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	who := func(name string, role auth.Role) auth.Identity {
		if err := operators.Add(name, role); err != nil {
			t.Fatal(err)
		}
		_, id, err := operators.Create(name, role, time.Hour, "")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ada, bob, root := who("ada", auth.Operate), who("bob", auth.Operate), who("root", auth.Administer)
	sessions := map[string]bool{}
	e := &exposed{
		operators: operators, wake: make(chan struct{}, 1), changed: func() {},
		sessions: func() map[string]bool { return sessions },
		taken:    func(name string) bool { return name == "office" },
		others: func() []public.Site {
			return []public.Site{{Name: "office", Publish: patterns(t, "https://wiki.try.test", "https://*.try.test")}}
		},
		reached: func() (string, string, error) { return "relay.test:443", "", nil },
	}
	e.setAllowed(patterns(t, "https://*.try.test", "tcp://:16000-16009"))
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := auth.FormatPublicKey(pub)
	add := func(id auth.Identity, name string, publish ...string) (*admin.Exposed, error) {
		return e.addFor(id, admin.Expose{Name: name, Key: key, Publish: publish})
	}
	refused := func(id auth.Identity, code int, want, name string, publish ...string) {
		t.Helper()
		_, err := add(id, name, publish...)
		if e, ok := errors.AsType[*admin.Error](err); !ok || e.Code != code || !strings.Contains(e.Text, want) {
			t.Errorf("%s %q %q: %v, want %d and %q", id.Operator, name, publish, err, code, want)
		}
	}
	made, err := add(ada, "")
	if err != nil {
		t.Fatal(err)
	}
	url := made.Publish[0]
	if !strings.HasPrefix(url, "https://") || !strings.HasSuffix(url, ".try.test") || made.Relay != "relay.test:443" || len(e.sites()) != 1 {
		t.Fatalf("exposed %+v", made)
	}
	refused(ada, 403, "may not expose", "", "https://app.test")
	refused(ada, 403, "may not expose", "", "tcp://:22")
	refused(ada, 409, "there is a site", "office", "https://a.try.test")
	refused(ada, 409, "is what site \"office\" publishes", "", "https://wiki.try.test")
	refused(ada, 400, "publish", "", "ftp://x")
	refused(bob, 409, "exposed by \"ada\"", "", url)
	if _, err := add(root, "", "https://app.test"); err != nil {
		t.Errorf("an admin: %v", err)
	}

	// The program that has exposed it before is gone: another one takes its place. While that is linked it does not.
	again, err := add(ada, "", url)
	if err != nil || again.Site == made.Site || len(e.sites()) != 2 {
		t.Fatalf("once more: %+v, %v, %d sites", again, err, len(e.sites()))
	}
	sessions[again.Site] = true
	refused(ada, 409, "already", "", url)
	if same, err := add(ada, again.Site, url); err != nil || same.Site != again.Site {
		t.Errorf("the same program after a restart: %+v, %v", same, err)
	}

	for i := range maxExposedOfOne {
		if _, err := add(bob, "", fmt.Sprintf("https://bob%d.try.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	refused(bob, 429, "ephemeral sites", "", "https://bob.try.test")

	// Without a session they are gone after a minute; with the token at once.
	e.look(time.Now().Add(2 * exposedTime))
	if left := e.sites(); len(left) != 1 || left[0].Name != again.Site {
		t.Errorf("left: %v", left)
	}
	if err := operators.Remove("ada"); err != nil {
		t.Fatal(err)
	}
	<-e.wake
	e.look(time.Now())
	if left := e.sites(); len(left) != 0 {
		t.Errorf("left without a token: %v", left)
	}
}
