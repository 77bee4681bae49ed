package public

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

// What guessing costs. An address that has guessed wrong maxWrong times is not heard for
// banTime; after that, each further wrong guess is one too many, until it has been quiet for a while.
const (
	maxWrong   = 10               // wrong passwords of one address for one service
	wrongTime  = 15 * time.Minute // in which as many are forgotten
	banTime    = 15 * time.Minute
	firstDelay = 250 * time.Millisecond // of the answer to the first wrong password; doubles
	maxDelay   = 4 * time.Second
	maxAtOnce  = 4 // guesses of one address that are being verified or wait for that

	goodTime = time.Hour       // for which a password that was right is not hashed again
	badTime  = 5 * time.Second // and one that was wrong, after its delay
	maxKnown = 4096            // of each

	maxVerifying = 64 // guesses that wait for a processor, of all services; see verifier
)

// users are who may come in to one service, by name and password (rfc7617). It is owned by the
// loop of the service.
//
// A password takes some 30 ms and 20 MiB to verify, so what was right is remembered: not the
// password, but an HMAC of it under a key that lives as long as the policy.
type users struct {
	challenge http1.Field // by Basic
	realm     string      // of Digest, which players are asked by; "": no hash is for it
	basic     bool        // there are others, whose password has to be seen
	key       [32]byte
	hashes    map[string]auth.PasswordHash
	decoys    []auth.PasswordHash // for names that there are not: they must not be told by the time it takes

	good, bad map[credential]int64 // until when
	pending   map[credential]*attempt
	atOnce    map[netip.Addr]int
	wrong     *limiter
}

// credential is the HMAC of a name and a password.
type credential [sha256.Size]byte

// attempt is a name and a password that are being verified, and the requests that wait for it.
type attempt struct {
	users   *users
	loop    *loop
	addr    netip.Addr // of who came first
	what    credential
	right   bool
	waiting []func()
}

func newUsers(list map[string]string, realm string) (*users, error) {
	u := &users{
		challenge: field("WWW-Authenticate", fmt.Sprintf("Basic realm=%q, charset=\"UTF-8\"", realm)),
		hashes:    make(map[string]auth.PasswordHash, len(list)),
		good:      make(map[credential]int64), bad: make(map[credential]int64),
		pending: make(map[credential]*attempt),
		atOnce:  make(map[netip.Addr]int),
		wrong:   newLimiter(relay.Rate{N: maxWrong, Per: wrongTime, Burst: maxWrong}),
	}
	rand.Read(u.key[:])
	for _, name := range slices.Sorted(maps.Keys(list)) {
		h, err := auth.ParsePasswordHash(list[name])
		if err != nil {
			return nil, fmt.Errorf("policy: user %q: %w", name, err)
		}
		u.hashes[name] = h
		u.decoys = append(u.decoys, h)
	}
	var err error
	if u.realm, err = auth.Realm(u.hashes); err != nil {
		return nil, fmt.Errorf("policy: users: %w", err)
	}
	u.basic = slices.ContainsFunc(u.decoys, func(h auth.PasswordHash) bool { return h.HA1("MD5") == "" })
	return u, nil
}

// credentials reads the value of an Authorization field.
func credentials(value []byte) (name, password string, ok bool) {
	scheme, text, _ := strings.Cut(string(value), " ")
	if !strings.EqualFold(scheme, "basic") {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// check decides about a request with that Authorization.
func (u *users) check(l *loop, addr netip.Addr, authorization []byte) (d decision, ok bool) {
	now := l.since()
	refuse := func(t *trouble, f http1.Field) (decision, bool) {
		return decision{action: doAnswer, trouble: t, fields: []http1.Field{f}}, false
	}
	name, password, has := credentials(authorization)
	var what credential
	if has {
		what = u.hmac("basic", []byte(name), []byte(password))
		if until, ok := u.good[what]; ok && until > now {
			return decision{}, true
		}
	}
	if wait := u.wrong.blocked(addr, now); wait > 0 {
		return refuse(troubleGuesses, retryIn(wait))
	}
	if !has || len(name) > relay.MaxUserName || len(password) > auth.MaxPassword {
		return refuse(troublePassword, u.challenge)
	}
	if until, ok := u.bad[what]; ok && until > now {
		return refuse(troublePassword, u.challenge)
	}
	a := u.pending[what]
	if a == nil {
		if u.atOnce[relay.Source(addr)] >= maxAtOnce {
			return refuse(troubleGuesses, retryIn(time.Second))
		}
		h, known := u.hashes[name]
		if !known {
			h = u.decoys[(int(what[0])<<8+int(what[1]))%len(u.decoys)]
		}
		a = &attempt{users: u, loop: l, addr: relay.Source(addr), what: what}
		secret := []byte(password)
		if !l.relay.verifier.verify(l, func() { a.right = h.Verify(name, secret) && known }, a.verified) {
			return decision{action: doAnswer, trouble: troubleVerifying}, false
		}
		u.pending[what] = a
		u.atOnce[a.addr]++
	}
	return decision{action: doHold, attempt: a}, false
}

// verified is the end of the work, on the loop.
func (a *attempt) verified() {
	u, now := a.users, a.loop.since()
	drop(u.atOnce, a.addr)
	if a.right {
		remember(u.good, a.what, now, now+int64(goodTime))
		a.over()
		return
	}
	a.wrong(now)
}

// wrong has the answer to a wrong password wait.
func (a *attempt) wrong(now int64) {
	u := a.users
	n := u.wrong.fine(a.addr, now, banTime)
	delay := min(firstDelay<<min(n-1, 10), maxDelay)
	remember(u.bad, a.what, now, now+int64(delay+badTime))
	a.loop.Arm(new(evloop.Timer), delay, a.over)
}

// over has the requests that wait decided again.
func (a *attempt) over() {
	delete(a.users.pending, a.what)
	for _, f := range a.waiting {
		f()
	}
	a.waiting = nil
}

// wait has f called, on the loop, when it is known whether the password is right, and the answer is
// due.
func (a *attempt) wait(f func()) { a.waiting = append(a.waiting, f) }

// remember keeps no more than maxKnown.
func remember(m map[credential]int64, what credential, now, until int64) {
	if len(m) >= maxKnown {
		maps.DeleteFunc(m, func(_ credential, t int64) bool { return t <= now })
	}
	for c := range m {
		if len(m) < maxKnown {
			break
		}
		delete(m, c) // any
	}
	m[what] = until
}

// verifier runs the verifications of all services: a few at a time, each of which may take as
// much memory as auth allows, and on no more than half of the processors. The zero value is ready.
type verifier struct {
	mu      sync.Mutex
	running int
	queue   []verification
}

type verification struct {
	loop       *loop
	work, done func()
}

// verify runs work off the loop and then done on it, unless too many wait already.
func (v *verifier) verify(l *loop, work, done func()) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) >= maxVerifying {
		return false
	}
	v.queue = append(v.queue, verification{l, work, done})
	if v.running < max(1, min(4, runtime.GOMAXPROCS(0)/2)) {
		v.running++
		l.Go(v.run, func() {})
	}
	return true
}

// run works until nothing waits.
func (v *verifier) run() {
	for {
		v.mu.Lock()
		if len(v.queue) == 0 {
			v.running--
			v.mu.Unlock()
			return
		}
		job := v.queue[0]
		v.queue = slices.Delete(v.queue, 0, 1)
		v.mu.Unlock()
		job.work()
		job.loop.Post(job.done)
	}
}
