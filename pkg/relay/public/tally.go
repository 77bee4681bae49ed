package public

import (
	"time"
)

// tally is what is counted for a service. It belongs to the site's loop, and is that
// of all services of the site which have the same name, one after the other or, while
// visitors of a session before still finish, at a time. So what is counted never falls.
type tally struct {
	joined    *splice   // visitors whose connection is a splice, in a list
	cursor    *splice   // of settle: the next one of them; nil: the first
	exchanges *exchange // under way, in a list
	flowing   *flow     // flows, in a list
	recent    recent    // requests that are over
	visitors  int
	total     uint64
	received  uint64 // bytes from visitors, but see bytes
	sent      uint64 // and to them
	datagrams Datagrams
	requests  Requests
	durations Durations
	errors    Troubles
	ours      uint64      // of requests: answers 5xx that have a word in errors, too
	cam       cameraTally // of a camera
	tftp      tftpTally   // of files
}

// bytes returns what has come from visitors and gone to them: of HTTP without the
// heads of requests, and of splices everything.
func (t *tally) bytes() (received, sent uint64) {
	received, sent = t.received, t.sent
	for j := t.joined; j != nil; j = j.after {
		o, i := j.stream.Bytes()
		received += i - j.received
		sent += o - j.sent
	}
	return received, sent
}

// maxSettled is how many splices of a service are looked at in one call of settle: some hundred microseconds.
const maxSettled = 4096

// settle counts what has moved since the last time, of so many splices, and goes on with the others the next time.
func (t *tally) settle(now int64) {
	j := t.cursor
	if j == nil {
		j = t.joined
	}
	for n := 0; j != nil && n < maxSettled; n++ {
		j.settle(now)
		j = j.after
	}
	t.cursor = j
}

// drop takes a splice out of the list.
func (t *tally) drop(j *splice) {
	if t.cursor == j {
		t.cursor = j.after
	}
	take(&t.joined, j)
}

// count counts a request that is over.
func (t *tally) count(proto string, status int, w word, took time.Duration) {
	class := status / 100
	if class >= len(t.requests[0]) {
		class = 0
	}
	t.requests[protocol(proto)][class]++
	t.errors[w]++
	if class == 5 && w != fine {
		t.ours++
	}
	if class > 1 { // what was cancelled, or goes on, took no time that means something
		t.durations.add(took)
	}
}

// Requests counts requests that are over by the version of HTTP that they came in, see
// Protocols, and by the first digit of their status; 0: there was none, as the visitor
// went away before.
type Requests [len(Protocols)][6]uint64

// Protocols are the versions that Requests tells apart.
var Protocols = [...]string{"http/1", "http/2", "http/3"}

// protocol is the index in Protocols of client.proto.
func protocol(proto string) int {
	switch proto {
	case "HTTP/2":
		return 1
	case "HTTP/3":
		return 2
	}
	return 0
}

// Durations counts how long requests took, from their head to the end of both request
// and response.
type Durations struct {
	Counts [len(Bounds)]uint64 // of those up to the bound, and over the one before
	Longer uint64              // of those beyond the last one
	Sum    time.Duration
}

// Bounds are those of Durations.
var Bounds = [...]time.Duration{
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond,
	time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, 100 * time.Second,
}

func (d *Durations) add(took time.Duration) {
	d.Sum += took
	for i, b := range Bounds {
		if took <= b {
			d.Counts[i]++
			return
		}
	}
	d.Longer++
}

// rateSeconds are how many whole seconds a rate is averaged over: of a camera more than it has between two key frames, as a
// rule, which are much larger than what is between them.
const rateSeconds = 5

// meter averages how many bytes there are in a second. Times are those of loop.since.
type meter struct {
	// Bytes by the second in which they came, as long as that is one of the last rateSeconds or now.
	bytes  [rateSeconds + 1]uint64
	second int64 // of the newest
	first  int64 // since when there is something, without a break of rateSeconds
	begun  bool
}

func (m *meter) add(now int64, n uint64) {
	m.advance(now)
	if !m.begun {
		m.begun, m.first = true, m.second
	}
	m.bytes[m.second%int64(len(m.bytes))] += n
}

// advance makes the second of now the newest, and forgets those that are too old.
func (m *meter) advance(now int64) {
	second := now / int64(time.Second)
	if second-m.second > rateSeconds {
		clear(m.bytes[:])
		m.second, m.first = second, second
	}
	for m.second < second {
		m.second++
		m.bytes[m.second%int64(len(m.bytes))] = 0
	}
}

// rate returns the bits per second of the last rateSeconds whole seconds, or of those since there is something.
func (m *meter) rate(now int64) uint64 {
	m.advance(now)
	var sum uint64
	for i, n := range m.bytes {
		if int64(i) != m.second%int64(len(m.bytes)) {
			sum += n
		}
	}
	// The first second was not a whole one. It counts as one, so that a rate is rather too low than too high.
	return 8 * sum / uint64(max(1, min(rateSeconds, m.second-m.first)))
}

// tally returns the tally for services of that name. On the loop.
func (g *group) tally(name string) *tally {
	t := g.tallies[name]
	if t == nil {
		t = new(tally)
		if g.tallies == nil {
			g.tallies = make(map[string]*tally)
		}
		g.tallies[name] = t
	}
	return t
}

// forget drops the tallies of services that are not there any more. What visitors of
// them still do is counted for nobody.
func (g *group) forget(services []*service) {
	if len(g.tallies) == len(services) {
		return
	}
	now := make(map[string]*tally, len(services))
	for _, name := range builtIns { // those are always there
		if t := g.tallies[name]; t != nil {
			now[name] = t
		}
	}
	for _, s := range services {
		now[s.name] = s.tally
	}
	g.sweep()
	for name, t := range g.tallies {
		if now[name] == t {
			continue
		}
		g.relay.inspector.forget(serviceName{g.site, name})
		if t.recent.free(g.loop); t.open() {
			g.gone = append(g.gone, orphan{t, name})
		}
	}
	g.tallies = now
}
