package acme

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

func base64url(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }

// testStore does to a Store what certmagic does.
func testStore(t *testing.T, s certmagic.Storage) {
	t.Helper()
	ctx := t.Context()
	if _, err := s.Load(ctx, "certificates/ca/a/a.key"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of what is not there: %v", err)
	}
	if _, err := s.Stat(ctx, "certificates/ca/a/a.key"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of what is not there: %v", err)
	}
	if _, err := s.List(ctx, "certificates", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of what is not there: %v", err)
	}
	if err := s.Delete(ctx, "certificates/ca/a/a.key"); err != nil {
		t.Errorf("Delete of what is not there: %v", err)
	}
	for key, value := range map[string]string{
		"certificates/ca/a/a.key": "secret", "certificates/ca/a/a.crt": "public", "certificates/ca/ab/ab.crt": "x", "certificates/other/c/c.crt": "",
	} {
		for range 2 { // it may be there already
			if err := s.Store(ctx, key, []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := s.Load(ctx, key); err != nil || string(b) != value {
			t.Errorf("%s: %q, %v", key, b, err)
		}
	}
	if !s.Exists(ctx, "certificates/ca/a") || !s.Exists(ctx, "certificates/ca/a/a.key") || s.Exists(ctx, "certificates/c") {
		t.Error("Exists is wrong")
	}
	if i, err := s.Stat(ctx, "certificates/ca/a/a.key"); err != nil || !i.IsTerminal || i.Size != 6 || time.Since(i.Modified) > time.Minute {
		t.Errorf("Stat: %+v, %v", i, err)
	}
	if i, err := s.Stat(ctx, "certificates/ca"); err != nil || i.IsTerminal {
		t.Errorf("Stat of a folder: %+v, %v", i, err)
	}
	for prefix, want := range map[string][]string{"certificates": {"certificates/ca", "certificates/other"}, "certificates/ca/a": {"certificates/ca/a/a.crt", "certificates/ca/a/a.key"}} {
		list, err := s.List(ctx, prefix, false)
		slices.Sort(list)
		if err != nil || !slices.Equal(list, want) {
			t.Errorf("List %s: %q, %v", prefix, list, err)
		}
	}
	list, err := s.List(ctx, "certificates/ca", true)
	slices.Sort(list)
	if want := []string{"certificates/ca/a", "certificates/ca/a/a.crt", "certificates/ca/a/a.key", "certificates/ca/ab", "certificates/ca/ab/ab.crt"}; err != nil || !slices.Equal(list, want) {
		t.Errorf("List of all: %q, %v", list, err)
	}
	if err := s.Delete(ctx, "certificates/ca/a"); err != nil {
		t.Fatal(err)
	}
	if s.Exists(ctx, "certificates/ca/a/a.key") || !s.Exists(ctx, "certificates/ca/ab/ab.crt") {
		t.Error("Delete of a folder has deleted something else")
	}
}

// redisServer is a redis-server on a socket.
type redisServer struct {
	t    testing.TB
	dir  string
	stop func()
}

func startRedis(t testing.TB) *redisServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "r") // the names of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &redisServer{t: t, dir: dir}
	r.start()
	return r
}

func (r *redisServer) start() {
	r.t.Helper()
	cmd := start(r.t, nil, tool(r.t, "redis-server"), "--port", "0", "--unixsocket", r.socket(), "--dir", r.dir, "--appendonly", "yes", "--save", "")
	r.stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	c := r.open()
	defer c.Close()
	waitFor(r.t, "redis-server", func() bool { return c.client.Ping(r.t.Context()).Err() == nil })
}

func (r *redisServer) socket() string { return filepath.Join(r.dir, "s") }

func (r *redisServer) open() *Redis {
	r.t.Helper()
	c, err := OpenRedis("unix://"+r.socket(), "", []byte("01234567890123456789012345678901"))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func TestRedisStore(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	r := srv.open()
	defer r.Close()
	testStore(t, r)

	// Who reads the server learns no keys, and cannot exchange values.
	ctx := t.Context()
	if err := r.Store(ctx, "certificates/ca/b/b.key", []byte("BEGIN PRIVATE KEY")); err != nil {
		t.Fatal(err)
	}
	all, err := r.client.HGetAll(ctx, redisData).Result()
	if err != nil || len(all) == 0 {
		t.Fatal(err)
	}
	for k, v := range all {
		if strings.Contains(v, "PRIVATE") {
			t.Errorf("%s is in the clear", k)
		}
	}
	if err := r.client.HSet(ctx, redisData, "certificates/ca/b/b.crt", all["certificates/ca/b/b.key"]).Err(); err != nil {
		t.Fatal(err)
	}
	if b, err := r.Load(ctx, "certificates/ca/b/b.crt"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a value under another key: %q, %v", b, err)
	}
	other, err := OpenRedis("unix://"+srv.socket(), "", []byte("another key 56789012345678901234"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Load(ctx, "certificates/ca/b/b.key"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := OpenRedis("redis://:s3cret@[::1", "", make([]byte, 32)); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a bad URL: %v", err)
	}
}

// A lock is kept while its holder lives, and passes on when it does not: then the old holder writes nothing.
func TestRedisLock(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	a, b := srv.open(), srv.open()
	a.lease, b.lease = 6*time.Second, 6*time.Second
	defer b.Close()
	ctx := context.WithValue(t.Context(), attemptKey{}, &attempt{name: "app.example.com"})
	name := issueLock("app.example.com")
	if err := a.Lock(ctx, name); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 13*time.Second)
	defer cancel()
	if err := b.Lock(short, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held, after two leases: %v", err)
	}
	if err := a.Store(ctx, "certificates/ca/app/app.key", []byte("a")); err != nil {
		t.Error(err)
	}
	// The holder stops for longer than its lease, as a machine does that is moved.
	a.mu.Lock()
	a.held[name].stop()
	a.mu.Unlock()
	if err := b.Lock(ctx, name); err != nil {
		t.Fatal(err)
	}
	if err := b.Store(ctx, "certificates/ca/app/app.key", []byte("b")); err != nil {
		t.Error(err)
	}
	if err := a.Store(ctx, "certificates/ca/app/app.key", []byte("late")); !errors.Is(err, errFenced) {
		t.Errorf("a write after the lock was lost: %v", err)
	}
	if err := a.Unlock(ctx, name); err != nil {
		t.Error(err)
	}
	if ok, err := a.TryLock(ctx, name); ok || err != nil {
		t.Errorf("the old holder has freed the new one's lock: %v, %v", ok, err)
	}
	if v, err := b.Load(ctx, "certificates/ca/app/app.key"); err != nil || string(v) != "b" {
		t.Errorf("%q, %v", v, err)
	}
	if err := b.Unlock(ctx, name); err != nil {
		t.Error(err)
	}
	// Close gives back what is held.
	if err := a.Lock(ctx, name); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if ok, err := b.TryLock(ctx, name); !ok || err != nil {
		t.Errorf("after Close: %v, %v", ok, err)
	}
}

// Two relays want one name at once: there is one order, either answers the authority, and both serve it. Without
// the store both go on.
func TestRedisShared(t *testing.T) {
	t.Parallel()
	srv := startRedis(t)
	p := startPebble(t, options{})
	front := p.inFront()
	caches := []string{t.TempDir(), t.TempDir()}
	manager := func(i int) *site {
		r := srv.open()
		s := p.site(func(c *Config) {
			c.Store, c.Cache = r, openFiles(t, caches[i])
			c.Directories = []Directory{{URL: front.url(), Roots: front.roots(), Profile: "default"}}
		})
		t.Cleanup(func() { s.Close(); r.Close() })
		return s
	}
	a, b := manager(0), manager(1)
	switched := p.prove(a, b) // in turn
	for _, s := range []*site{a, b} {
		s.Manage([]string{"app.example.com"})
	}
	one, two := a.certified(t, "app.example.com"), b.certified(t, "app.example.com")
	if !one.Expires.Equal(two.Expires) || !a.Certificate("app.example.com").Leaf.Equal(b.Certificate("app.example.com").Leaf) {
		t.Error("two certificates")
	}
	if n := front.ordered(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}

	srv.stop()
	if _, err := p.visit("app.example.com"); err != nil {
		t.Errorf("without the store: %v", err)
	}
	b.Close()
	b = manager(1) // started without the store
	switched(b)
	b.Manage([]string{"app.example.com", "late.example.com"})
	if _, err := p.visit("app.example.com"); err != nil {
		t.Errorf("started without the store: %v", err)
	}
	if st := b.failed(t, "late.example.com"); !strings.Contains(st.Err, "store") {
		t.Errorf("status %+v", st)
	}
	if n := front.ordered(); n != 1 {
		t.Errorf("%d orders: one cannot be kept without the store", n)
	}
	srv.start()
	b.Retry()
	b.certified(t, "late.example.com")
}

// What nobody will want leaves the store, and the rest stays.
func TestClean(t *testing.T) {
	store := openFiles(t, t.TempDir())
	m, err := New(Config{Store: store, Directories: []Directory{{URL: "https://127.0.0.1:1/dir"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	now := time.Now()
	dir := t.TempDir()
	testCertificate(t, dir) // for another hour
	pem, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]byte{"certificates/ca/a/a.crt": pem, "certificates/ca/a/a.key": nil, "certificates/ca/a/a.json": nil}
	add := func(key string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		values[key] = b
	}
	add("retry/new.json", record{Failures: 1, Next: now.Add(time.Hour)})
	add("retry/old.json", record{Failures: 9, Next: now.Add(-keepTime - time.Hour)})
	add("challenges/http/new.json", shownChallenge{Since: now})
	add("challenges/http/old.json", shownChallenge{Since: now.Add(-2 * challengeOld)})
	for key, value := range values {
		if err := store.Store(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.cleanNow(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	for key := range values {
		if there := store.Exists(t.Context(), key); there == strings.Contains(key, "old") {
			t.Errorf("%s: %v", key, there)
		}
	}
}

// mute is a Store that does not answer.
type mute struct{ *Files }

func (mute) Load(context.Context, string) ([]byte, error) { return nil, errors.New("no answer") }

// A restart while the shared Store is away serves the copy, also when the first authority has never issued anything.
func TestCopyOfSecondAuthority(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	local := openFiles(t, t.TempDir())
	config := func(c *Config) {
		c.Store = local
		c.Directories = []Directory{{URL: "https://127.0.0.1:1/dir"}, c.Directories[0]}
	}
	s := p.site(config)
	p.prove(s)
	s.Manage([]string{"app.example.com"})
	want := s.certified(t, "app.example.com")
	s.Close()

	s = p.site(func(c *Config) {
		config(c)
		c.Store, c.Cache = mute{openFiles(t, t.TempDir())}, local
	})
	s.Manage([]string{"app.example.com"})
	if got := s.certified(t, "app.example.com"); !got.Expires.Equal(want.Expires) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
