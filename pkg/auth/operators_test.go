package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var here = netip.MustParseAddr("192.0.2.7")

func openOperators(t *testing.T, dir string) *Operators {
	t.Helper()
	o, err := OpenOperators(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOperators(t *testing.T) {
	dir := t.TempDir()
	o := openOperators(t, dir)
	if err := o.Add("ann@example.com", Operate); err != nil {
		t.Fatal(err)
	}
	token, id, err := o.Create("ann@example.com", NoRole, 0, "her laptop")
	if err != nil || !strings.HasPrefix(token, "cvo_") || id.Role != Operate || id.Operator != "ann@example.com" {
		t.Fatalf("Create = %q, %+v, %v", token, id, err)
	}
	if left := time.Until(id.Expires); left > OperatorTTL || left < OperatorTTL-time.Minute {
		t.Errorf("a token that nothing is said about lives for %v", left)
	}
	got, ok := o.Verify(token, here)
	if !ok || got != id {
		t.Errorf("Verify = %+v, %v, want %+v", got, ok, id)
	}
	for _, wrong := range []string{"", "cvo_", token + "x", token[:len(token)-1], strings.ToUpper(token)} {
		if id, ok := o.Verify(wrong, here); ok {
			t.Errorf("%q is good for %+v", wrong, id)
		}
	}

	// The token is in no file, and what is there is for the relay alone.
	if err := o.Save(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "operators.json")
	if strings.Contains(readFile(t, file), token[4:]) {
		t.Error("the file has the token")
	}
	if info, err := os.Stat(file); runtime.GOOS != "windows" && (err != nil || info.Mode().Perm() != 0o600) {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	// All is there again after a restart, last uses included.
	o = openOperators(t, dir)
	if got, ok := o.Verify(token, here); !ok || got != id {
		t.Errorf("after a restart: %+v, %v, want %+v", got, ok, id)
	}
	list := o.Tokens("")
	if len(list) != 1 || list[0].Note != "her laptop" || list[0].LastFrom != here || time.Since(list[0].LastUsed) > time.Minute {
		t.Errorf("tokens %+v", list)
	}
	if all := o.List(); len(all) != 1 || all[0].Tokens != 1 || all[0].LastUsed.IsZero() {
		t.Errorf("operators %+v", all)
	}

	// A token that is for less stays so whatever becomes of its operator.
	less, lessID, err := o.Create("ann@example.com", Viewer, -1, "")
	if err != nil || !lessID.Expires.IsZero() {
		t.Fatalf("Create = %+v, %v", lessID, err)
	}
	for _, test := range []struct{ operator, token, less Role }{{Administer, Administer, Viewer}, {Viewer, Viewer, Viewer}, {Operate, Operate, Viewer}} {
		if err := o.SetRole("ann@example.com", test.operator); err != nil {
			t.Fatal(err)
		}
		if id, ok := o.Verify(token, here); !ok || id.Role != test.token {
			t.Errorf("operator %v: the token is for %v", test.operator, id.Role)
		}
		if id, ok := o.Verify(less, here); !ok || id.Role != test.less {
			t.Errorf("operator %v: the viewer's token is for %v", test.operator, id.Role)
		}
	}

	if err := o.Revoke(lessID.Token); err != nil {
		t.Fatal(err)
	}
	if _, ok := o.Verify(less, here); ok {
		t.Error("a revoked token is good")
	}
	if err := o.Remove("ann@example.com"); err != nil {
		t.Fatal(err)
	}
	if _, ok := o.Verify(token, here); ok {
		t.Error("the token of an operator who was removed is good")
	}
	if len(o.List())+len(o.Tokens("")) > 0 {
		t.Errorf("left: %+v, %+v", o.List(), o.Tokens(""))
	}
}

func TestOperatorsRefuse(t *testing.T) {
	o := openOperators(t, t.TempDir())
	if err := o.Add("bob", Viewer); err != nil {
		t.Fatal(err)
	}
	create := func(name string, role Role, ttl time.Duration, note string) error {
		_, _, err := o.Create(name, role, ttl, note)
		return err
	}
	for i, test := range []struct{ got, want error }{
		{o.Add("bob", Viewer), ErrOperatorExists},
		{o.Add("", Viewer), ErrOperatorName},
		{o.Add("admin", Viewer), ErrOperatorName},
		{o.Add("a b", Viewer), ErrOperatorName},
		{o.Add("-rf", Viewer), ErrOperatorName},
		{o.Add("a\n", Viewer), ErrOperatorName},
		{o.Add(strings.Repeat("x", 65), Viewer), ErrOperatorName},
		{o.Add("eve", NoRole), ErrRole},
		{o.Add("eve", Administer+1), ErrRole},
		{o.SetRole("eve", Viewer), ErrUnknownOperator},
		{o.SetRole("admin", Viewer), ErrUnknownOperator},
		{o.SetRole("bob", NoRole), ErrRole},
		{o.Remove("eve"), ErrUnknownOperator},
		{o.Remove("admin"), ErrUnknownOperator},
		{o.Revoke("00000000"), ErrUnknownToken},
		{o.Revoke(AdminTokenID), ErrUnknownToken},
		{o.Revoke(""), ErrUnknownToken},
		{create("eve", NoRole, 0, ""), ErrUnknownOperator},
		{create("bob", Operate, 0, ""), ErrRole},
		{create("bob", Viewer, MaxOperatorTTL+1, ""), ErrTTL},
		{create("bob", Viewer, 0, strings.Repeat("x", 201)), ErrNote},
		{create("bob", Viewer, 0, "\x1b[2J"), ErrNote},
		{create("bob", Viewer, 0, "\xff"), ErrNote},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%d: %v, want %v", i, test.got, test.want)
		}
	}
	for range MaxOperatorTokens {
		if err := create("bob", NoRole, 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := create("bob", NoRole, 0, ""); !errors.Is(err, ErrTooMany) {
		t.Errorf("one token too many: %v", err)
	}
	if _, err := ParseRole("none"); !errors.Is(err, ErrRole) {
		t.Errorf("ParseRole(none) = %v", err)
	}
}

// The token of admin.token is good whatever the file says, and can be replaced without a restart.
func TestOperatorsAdminToken(t *testing.T) {
	dir := t.TempDir()
	o := openOperators(t, dir)
	read := func() string { return strings.TrimSpace(readFile(t, filepath.Join(dir, "admin.token"))) }
	token := read()
	id, ok := o.Verify(token, here)
	if !ok || id.Role != Administer || id.Operator != AdminName || id.Token != AdminTokenID {
		t.Fatalf("Verify = %+v, %v", id, ok)
	}
	ended := 0
	stop := o.Follow(id, func() { ended++ })
	defer stop()
	if err := o.ReadAdminToken(); err != nil || ended != 0 {
		t.Errorf("read again, with nothing new: %v, ended %d", err, ended)
	}
	os.Remove(filepath.Join(dir, "admin.token"))
	if err := o.ReadAdminToken(); err != nil || ended != 1 {
		t.Errorf("read again, with another token: %v, ended %d", err, ended)
	}
	if _, ok := o.Verify(token, here); ok {
		t.Error("the old token is good")
	}
	if _, ok := o.Verify(read(), here); !ok {
		t.Error("the new token is not")
	}
}

// Whoever follows a token hears that it is no longer what it was: once, and from whatever end it has.
func TestOperatorsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openOperators(t, t.TempDir())
		o.Add("ann", Operate)
		o.Add("bob", Operate)
		_, bob, _ := o.Create("bob", NoRole, 0, "")
		stop := o.Follow(bob, func() { t.Error("bob's token has not changed") })
		for name, end := range map[string]func(Identity){
			"revoked":   func(id Identity) { o.Revoke(id.Token) },
			"a role":    func(Identity) { o.SetRole("ann", Viewer) },
			"expired":   func(Identity) { time.Sleep(time.Hour); synctest.Wait() },
			"no person": func(Identity) { o.Remove("ann") },
		} {
			o.Add("ann", Operate)
			o.SetRole("ann", Operate)
			_, id, err := o.Create("ann", NoRole, time.Hour, "")
			if err != nil {
				t.Fatal(err)
			}
			var ended, stopped atomic.Int32
			o.Follow(id, func() { ended.Add(1) })
			o.Follow(id, func() { stopped.Add(1) })()
			o.Save()
			if ended.Load() != 0 {
				t.Errorf("%s: ended before", name)
			}
			end(id)
			end(id)
			if ended.Load() != 1 || stopped.Load() != 0 {
				t.Errorf("%s: ended %d times, and %d after Stop", name, ended.Load(), stopped.Load())
			}
			o.Follow(id, func() { ended.Add(1) })()
			if ended.Load() != 2 {
				t.Errorf("%s: who comes late is not told", name)
			}
			if _, ok := o.Current(id.Token); ok && name != "a role" {
				t.Errorf("%s: the token is current", name)
			}
		}
		if len(o.followers) != 1 {
			t.Errorf("%d followers are left, want bob's", len(o.followers))
		}
		stop() // its timer, too
	})
}

// Expired tokens are shown for a month, and then forgotten.
func TestOperatorsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openOperators(t, t.TempDir())
		o.Add("ann", Viewer)
		token, _, _ := o.Create("ann", NoRole, time.Hour, "")
		time.Sleep(time.Hour)
		if _, ok := o.Verify(token, here); ok || len(o.Tokens("ann")) != 1 || o.List()[0].Tokens != 0 {
			t.Errorf("good %v, %d tokens, %+v", ok, len(o.Tokens("ann")), o.List())
		}
		time.Sleep(31 * 24 * time.Hour)
		o.SetRole("ann", Operate)
		if n := len(o.Tokens("ann")); n != 0 {
			t.Errorf("%d tokens are remembered", n)
		}
	})
}

// What cannot be written is not so.
func TestOperatorsDisk(t *testing.T) {
	dir := t.TempDir()
	o := openOperators(t, dir)
	o.Add("ann", Viewer)
	token, id, _ := o.Create("ann", NoRole, 0, "")
	os.RemoveAll(dir)
	for name, err := range map[string]error{"Add": o.Add("bob", Viewer), "Revoke": o.Revoke(id.Token), "Remove": o.Remove("ann")} {
		if err == nil {
			t.Errorf("%s in a folder that is gone succeeds", name)
		}
	}
	if _, ok := o.Verify(token, here); !ok || len(o.List()) != 1 {
		t.Errorf("good %v, operators %v: a change that failed was made", ok, o.List())
	}
}

func TestOperatorsAtOnce(t *testing.T) {
	dir := t.TempDir()
	o := openOperators(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprint("o", i)
			if err := o.Add(name, Operate); err != nil {
				t.Error(err)
			}
			token, id, err := o.Create(name, NoRole, 0, "")
			if err != nil {
				t.Error(err)
			}
			stop := o.Follow(id, func() {})
			for range 100 {
				if _, ok := o.Verify(token, here); !ok {
					t.Error("not good")
				}
			}
			stop()
		})
	}
	wg.Wait()
	if n := len(openOperators(t, dir).List()); n != 8 {
		t.Errorf("%d operators are in the file", n)
	}
}

func TestOperatorsDamaged(t *testing.T) {
	const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	one := func(tokens string) string {
		return `{"operators":[{"name":"ann","role":"viewer","created":"2026-11-23T00:00:00Z","tokens":[` + tokens + `]}]}`
	}
	for text, want := range map[string]string{
		"":                                 "EOF",
		"[]":                               "cannot unmarshal",
		`{"operators":[]} x`:               "follows",
		`{"operator":[]}`:                  "unknown field",
		`{"operators":[{"name":"ann"}]}`:   "has none",
		`{"operators":[{"name":"admin"}]}`: "bad name",
		`{"operators":[{"name":"ann","role":"root"}]}`:                                                 "want viewer",
		one(`{"id":"a","sha256":"00"}`):                                                                "sha256",
		one(`{"sha256":"` + digest + `"}`):                                                             "ID",
		one(`{"id":"a","sha256":"` + digest + `"},{"id":"b","sha256":"` + digest + `"}`):               "twice",
		one(`{"id":"a","sha256":"` + digest + `","note":"\u0007"}`):                                    "shown",
		`{"operators":[{"name":"ann","role":"viewer"},{"name":"ann","role":"viewer"}]}`:                "twice",
		`{"operators":[` + strings.Repeat(`{"name":"ann"},`, MaxOperators) + `{"name":"ann"}]}`:        "more than",
		one(strings.Repeat(`{"id":"a"},`, MaxOperatorTokens) + `{"id":"a"}`):                           "more than",
		one(`{"id":"a","sha256":"` + digest + `","last_used":"2026-11-23T00:00:00Z","last_from":"x"}`): "ParseAddr",
		one(`{"id":"admin.token","sha256":"` + digest + `"}`):                                          "of its own",
	} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "operators.json"), []byte(text), 0o600)
		if _, err := OpenOperators(dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%.80s: %v, want %q and the file", text, err, want)
		}
	}
}

func FuzzOperators(f *testing.F) {
	f.Add([]byte(`{"operators":[{"name":"ann","role":"viewer","created":"2026-11-23T00:00:00Z","tokens":[{"id":"a","sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","role":"viewer","note":"x","created":"2026-11-23T00:00:00Z","expires":"2026-11-23T00:00:00Z","last_used":"2026-11-23T00:00:00Z","last_from":"192.0.2.1"}]}]}`))
	f.Add([]byte(`{"operators":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseOperators(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(st)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		same, err := parseOperators(again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, again)
		}
		third, _ := json.Marshal(same)
		if string(third) != string(again) || !reflect.DeepEqual(len(st.Operators), len(same.Operators)) {
			t.Errorf("%s\nbecame\n%s", again, third)
		}
	})
}
