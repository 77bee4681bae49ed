package acme

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/go-redis/v9"
)

// Redis is a Store that relays share. Who can read the server learns the names and
// when they were written, not the keys: values are sealed with AES-256-GCM.
//
// A lock is a lease: its key in the server holds a number that nobody had before, and
// goes away by itself when its holder does not come back in time. What a holder
// writes is written only while the number is still there.
type Redis struct {
	client *redis.Client
	seal   cipher.AEAD
	lease  time.Duration

	tasks sync.WaitGroup
	mu    sync.Mutex
	held  map[string]*lock
}

// lock is one that this process holds.
type lock struct {
	number string
	stop   context.CancelFunc // of the renewal
}

// Names in the server. They share a slot, so that a cluster takes the scripts.
const (
	redisData  = "{culvert:acme}:data" // a hash: values by key
	redisFence = "{culvert:acme}:fence"
	redisLock  = "{culvert:acme}:lock:"
)

const (
	leaseTime = 20 * time.Second       // of a lock whose holder has died
	lockPoll  = 250 * time.Millisecond // between tries to get a lock
)

// StoreKeySize is how many bytes the key of a Redis has.
const StoreKeySize = 32

// OpenRedis returns a Store on the server that url names, as go-redis has it:
// redis://USER:PASSWORD@HOST:PORT/DB, rediss:// with TLS, unix://PATH?db=DB. A
// password that is not "" is used instead of the URL's. Relays that share a server
// have the same key. Nothing is asked of the server before it is needed.
func OpenRedis(url, password string, key []byte) (*Redis, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("want redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH?db=DB") // err has the password
	}
	if password != "" {
		o.Password = password
	}
	if len(key) != StoreKeySize {
		return nil, fmt.Errorf("the key has %d bytes, want %d", len(key), StoreKeySize)
	}
	redis.SetLogger(silent{}) // what fails is returned
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = 3*time.Second, 3*time.Second, 3*time.Second
	o.MaxRetries, o.DialerRetries = 1, 1
	o.ContextTimeoutEnabled = true
	o.PoolSize, o.MinIdleConns = 16, 0
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &Redis{client: redis.NewClient(o), seal: seal, lease: leaseTime, held: make(map[string]*lock)}, nil
}

// silent is the logger of go-redis, which has one for all clients.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// failed hides what is in an error of the server: a socket that is not there would be
// fs.ErrNotExist, which means that the server has answered.
func failed(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("redis: %v", err)
}

// Close gives the locks back, and closes the connections.
func (r *Redis) Close() error {
	r.mu.Lock()
	names := make([]string, 0, len(r.held))
	for name := range r.held {
		names = append(names, name)
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	for _, name := range names {
		r.Unlock(ctx, name)
	}
	r.tasks.Wait()
	return r.client.Close()
}

// Shared reports that others may order what this process is asked about.
func (r *Redis) Shared() bool { return true }

// A value is a version, the time it was written, a nonce, and the sealed bytes. Its
// key and what comes before the nonce are sealed with it, so that values cannot be
// exchanged.
const valueVersion = 1

func (r *Redis) sealed(key string, value []byte) []byte {
	head := make([]byte, 9, 9+r.seal.NonceSize()+len(value)+r.seal.Overhead())
	head[0] = valueVersion
	binary.BigEndian.PutUint64(head[1:], uint64(time.Now().UnixMilli()))
	more := append(slices.Clone(head), key...)
	nonce := make([]byte, r.seal.NonceSize())
	rand.Read(nonce)
	return r.seal.Seal(append(head, nonce...), nonce, value, more)
}

func (r *Redis) open(key string, b []byte) (value []byte, written time.Time, err error) {
	n := r.seal.NonceSize()
	if len(b) < 9+n || b[0] != valueVersion {
		return nil, time.Time{}, fmt.Errorf("%s: not a value of ours", key)
	}
	value, err = r.seal.Open(nil, b[9:9+n], b[9+n:], append(slices.Clone(b[:9]), key...))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("%s: sealed with another key, or changed", key)
	}
	return value, time.UnixMilli(int64(binary.BigEndian.Uint64(b[1:]))), nil
}

// storeScript writes a value, if the lock that is to be held still has its number.
var storeScript = redis.NewScript(`
if ARGV[3] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1`)

// errFenced is the error of a write after the lock was lost.
var errFenced = errors.New("redis: the lock was lost meanwhile: another relay may have it, so nothing is written")

// Store implements certmagic.Storage.
func (r *Redis) Store(ctx context.Context, key string, value []byte) error {
	name, number := "", ""
	if a := attemptOf(ctx); a != nil && isCopied(key) {
		name = issueLock(a.name)
		r.mu.Lock()
		if l := r.held[name]; l != nil {
			number = l.number
		}
		r.mu.Unlock()
	}
	done, err := storeScript.Run(ctx, r.client, []string{redisData, redisLock + name}, key, r.sealed(key, value), number).Int()
	if err == nil && done == 0 {
		return errFenced
	}
	return failed(err)
}

// issueLock is certmagic's name for the lock of an order.
func issueLock(name string) string { return "issue_cert_" + name }

// Load implements certmagic.Storage.
func (r *Redis) Load(ctx context.Context, key string) ([]byte, error) {
	value, _, err := r.load(ctx, key)
	return value, err
}

func (r *Redis) load(ctx context.Context, key string) ([]byte, time.Time, error) {
	b, err := r.client.HGet(ctx, redisData, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, time.Time{}, fs.ErrNotExist
	}
	if err != nil {
		return nil, time.Time{}, failed(err)
	}
	return r.open(key, b)
}

// keys are those that are prefix or lie below it.
func (r *Redis) keys(ctx context.Context, prefix string) ([]string, error) {
	all, err := r.client.HKeys(ctx, redisData).Result()
	if err != nil {
		return nil, failed(err)
	}
	return slices.DeleteFunc(all, func(k string) bool {
		return prefix != "" && k != prefix && !strings.HasPrefix(k, prefix+"/")
	}), nil
}

// Delete implements certmagic.Storage.
func (r *Redis) Delete(ctx context.Context, key string) error {
	list, err := r.keys(ctx, key)
	if err != nil || len(list) == 0 {
		return err
	}
	return failed(r.client.HDel(ctx, redisData, list...).Err())
}

// Exists implements certmagic.Storage.
func (r *Redis) Exists(ctx context.Context, key string) bool {
	ok, err := r.client.HExists(ctx, redisData, key).Result()
	if err != nil || ok {
		return ok
	}
	list, err := r.keys(ctx, key)
	return err == nil && len(list) > 0
}

// List implements certmagic.Storage.
func (r *Redis) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	prefix = strings.Trim(prefix, "/")
	all, err := r.keys(ctx, prefix)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, k := range all {
		if k == prefix {
			continue
		}
		rest := k
		if prefix != "" {
			rest = k[len(prefix)+1:]
		}
		parts := strings.Split(rest, "/")
		n := 1
		if recursive {
			n = len(parts)
		}
		for i := range n {
			name := strings.Join(parts[:i+1], "/")
			if prefix != "" {
				name = prefix + "/" + name
			}
			seen[name] = true
		}
	}
	if len(seen) == 0 {
		return nil, fs.ErrNotExist
	}
	list := make([]string, 0, len(seen))
	for k := range seen {
		list = append(list, k)
	}
	slices.Sort(list)
	return list, nil
}

// Stat implements certmagic.Storage.
func (r *Redis) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, written, err := r.load(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Modified: written, Size: int64(len(value)), IsTerminal: true}, nil
	}
	if errors.Is(err, fs.ErrNotExist) && r.Exists(ctx, key) {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{}, err
}

// renewScript keeps a lock, also one that the server has forgotten and nobody has
// taken since.
var renewScript = redis.NewScript(`
local now = redis.call('GET', KEYS[1])
if now == false or now == ARGV[1] then
	redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
	return 1
end
return 0`)

var unlockScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

// TryLock implements certmagic.TryLocker.
func (r *Redis) TryLock(ctx context.Context, name string) (bool, error) {
	n, err := r.client.Incr(ctx, redisFence).Result()
	if err != nil {
		return false, failed(err)
	}
	// The random half is for a server that has lost its memory and counts anew.
	salt, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return false, err
	}
	number := fmt.Sprintf("%d-%d", n, salt)
	ok, err := r.client.SetNX(ctx, redisLock+name, number, r.lease).Result()
	if err != nil || !ok {
		return false, failed(err)
	}
	renewal, stop := context.WithCancel(context.Background())
	r.mu.Lock()
	if old := r.held[name]; old != nil { // lost, and had again
		old.stop()
	}
	r.held[name] = &lock{number, stop}
	r.mu.Unlock()
	r.tasks.Go(func() { r.renew(renewal, name, number) })
	return true, nil
}

// renew keeps a lock until it is given back, or lost.
func (r *Redis) renew(ctx context.Context, name, number string) {
	tick := time.NewTicker(r.lease / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		kept, err := renewScript.Run(ctx, r.client, []string{redisLock + name}, number, r.lease.Milliseconds()).Int()
		if err == nil && kept == 0 {
			return // what its holder writes is refused
		}
	}
}

// Lock implements certmagic.Locker.
func (r *Redis) Lock(ctx context.Context, name string) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		switch ok, err := r.TryLock(ctx, name); {
		case ok:
			return nil
		case ctx.Err() != nil:
			return ctx.Err() // and not that Redis, which had less and less time, is slow
		case err != nil:
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unlock implements certmagic.Locker.
func (r *Redis) Unlock(ctx context.Context, name string) error {
	r.mu.Lock()
	l := r.held[name]
	delete(r.held, name)
	r.mu.Unlock()
	if l == nil {
		return nil
	}
	l.stop()
	return failed(unlockScript.Run(ctx, r.client, []string{redisLock + name}, l.number).Err())
}

// String is for logs.
func (r *Redis) String() string { return "redis" }
