// Package history keeps what services have carried, for charts: rates by the second of the last minutes, and coarser ones of
// hours and days.
//
//	var h history.Store
//	h.Add(time.Now(), samples) // once a second
//	past := h.Get("office", "web", time.Hour, time.Now())
//
// # Invariants
//
//   - Memory is bounded, whatever there is to keep: a value takes two bytes, a minute in which nothing happens none, and
//     when Store.Budget is used up the oldest values of the level that has most of them are forgotten.
//   - A service that is silent costs a look at a map in each Add, and no more.
package history

import (
	"math"
	"sync"
	"time"
)

// Sample is what is known of a service at one moment. Counters may fall: then the service has begun anew.
type Sample struct {
	Site, Service    string
	Visitors         int    // now
	In, Out          uint64 // bytes so far
	Requests, Errors uint64 // so far
}

// Rates are what a second has brought.
type Rates struct {
	In, Out, Visitors, Requests, Errors float64 // Visitors are no rate: how many there were
}

// IsZero reports whether there was nothing.
func (r Rates) IsZero() bool { return r == Rates{} }

func (r *Rates) add(o Rates) {
	r.In += o.In
	r.Out += o.Out
	r.Visitors += o.Visitors
	r.Requests += o.Requests
	r.Errors += o.Errors
}

// key names a service; a site if the service is "", and everything if both are.
type key struct{ site, service string }

// meter turns samples into rates. The zero value is ready. It is not safe for use by several goroutines.
type meter struct {
	last map[key]*reading
	at   time.Time
	look uint64
}

// reading is what a Sample has said.
type reading struct {
	in, out, requests, errors uint64
	look                      uint64
}

// read calls f with each sample's rates since the last call. A service that was not there then has begun with 0 since. Of the
// first call nothing is known: only Visitors are set.
func (m *meter) read(now time.Time, samples []Sample, f func(s *Sample, r Rates)) {
	seconds := now.Sub(m.at).Seconds()
	if m.last == nil {
		m.last = make(map[key]*reading)
	}
	known := !m.at.IsZero() && seconds > 0
	m.at = now
	m.look++
	for i := range samples {
		s := &samples[i]
		r := Rates{Visitors: float64(s.Visitors)}
		k := key{s.Site, s.Service}
		was := m.last[k]
		if was == nil {
			was = new(reading)
			m.last[k] = was
		}
		if known {
			r.In, r.Out = rate(was.in, s.In, seconds), rate(was.out, s.Out, seconds)
			r.Requests, r.Errors = rate(was.requests, s.Requests, seconds), rate(was.errors, s.Errors, seconds)
		}
		*was = reading{s.In, s.Out, s.Requests, s.Errors, m.look}
		f(s, r)
	}
	if len(m.last) > len(samples) {
		for k, r := range m.last {
			if r.look != m.look {
				delete(m.last, k)
			}
		}
	}
}

func rate(from, to uint64, seconds float64) float64 {
	if to < from { // it has begun anew
		from = 0
	}
	return float64(to-from) / seconds
}

// DefaultBudget is that of a Store whose Budget is 0: enough for all that is kept of some 4000 services which never rest, and of
// any number that mostly do.
const DefaultBudget = 64 << 20

// maxSeries bounds the services and sites of which something is kept. Those that are gone make room.
const maxSeries = 20000

// levels are what is kept, the finest first.
var levels = [...]struct {
	step   int64 // seconds
	points int64
}{{1, 5 * 60}, {15, 2 * 60 * 4}, {5 * 60, 2 * 24 * 12}}

// chunkPoints is how many points of a level are kept or forgotten at a time.
const chunkPoints = 60

// maxGap is how many seconds that nobody has looked at are taken to have been like those on average since the last look.
const maxGap = 5

// Store keeps rates of services, of sites and of everything. The zero value is ready. It is safe for use by several goroutines.
type Store struct {
	// Budget is how many bytes values may take. 0: DefaultBudget.
	Budget int

	mu     sync.Mutex
	meter  meter
	second int64 // of the last Add, since 1970
	series map[key]*series
	used   [len(levels)]queue // chunks, in the order in which they were begun
	sums   map[string]Rates   // by site, of this Add
}

// series is what is kept of a service, a site or everything.
type series struct {
	seen   int64 // second of the last Add that had it
	levels [len(levels)]level
}

// level is one of levels of a series.
type level struct {
	chunks []*chunk // by number modulo the length; entries may be nil, or older
	step   int64    // that sum is of
	sum    Rates    // of its seconds so far
}

// chunk is chunkPoints points.
type chunk struct {
	owner         *series
	level         int
	number        int64 // of its first point, divided by chunkPoints
	before, after *chunk
	values        [chunkPoints][5]value
}

// chunkSize is what a chunk takes.
const chunkSize = chunkPoints*5*2 + 48

// queue is a list of chunks.
type queue struct {
	first, last *chunk
	n           int
}

func (q *queue) push(c *chunk) {
	c.before, c.after = q.last, nil
	if q.last != nil {
		q.last.after = c
	} else {
		q.first = c
	}
	q.last = c
	q.n++
}

func (q *queue) take(c *chunk) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		q.first = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	} else {
		q.last = c.before
	}
	q.n--
}

// Add takes what is known now. It is to be called once a second; what comes within the same one is taken with the next.
func (h *Store) Add(now time.Time, samples []Sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	second := now.Unix()
	if second <= h.second && second > h.second-60 {
		return
	}
	from := h.second + 1
	if h.second == 0 || second < h.second || second-h.second > maxGap { // the first one, the clock was set back, or we were asleep
		from = second
	}
	h.second = second
	if h.series == nil {
		h.series, h.sums = make(map[key]*series), make(map[string]Rates)
	}
	var all Rates
	h.meter.read(now, samples, func(s *Sample, r Rates) {
		if r.IsZero() {
			if old := h.series[key{s.Site, s.Service}]; old != nil {
				old.seen = second
			}
			return
		}
		sum := h.sums[s.Site]
		sum.add(r)
		h.sums[s.Site] = sum
		all.add(r)
		h.put(key{s.Site, s.Service}, from, second, r)
	})
	for site, r := range h.sums {
		h.put(key{site, ""}, from, second, r)
	}
	if !all.IsZero() {
		h.put(key{}, from, second, all)
	}
	clear(h.sums)
}

// put has r be what the seconds from from to to were like.
func (h *Store) put(k key, from, to int64, r Rates) {
	s := h.series[k]
	if s == nil {
		if len(h.series) >= maxSeries && !h.forget() {
			return
		}
		s = new(series)
		h.series[k] = s
	}
	s.seen = to
	for second := from; second <= to; second++ {
		for i := range levels {
			l, step := &s.levels[i], second/levels[i].step
			if l.step != step {
				l.step, l.sum = step, Rates{}
			}
			l.sum.add(r)
			n := float64(levels[i].step)
			h.chunk(s, i, step/chunkPoints).values[step%chunkPoints] = [5]value{
				encode(l.sum.In / n), encode(l.sum.Out / n), encode(l.sum.Visitors / n), encode(l.sum.Requests / n), encode(l.sum.Errors / n),
			}
		}
	}
}

// chunk returns the chunk of that number.
func (h *Store) chunk(s *series, i int, number int64) *chunk {
	l := &s.levels[i]
	if l.chunks == nil {
		l.chunks = make([]*chunk, (levels[i].points+chunkPoints-1)/chunkPoints+1)
	}
	at := &l.chunks[number%int64(len(l.chunks))]
	if c := *at; c != nil {
		if c.number == number {
			return c
		}
		h.free(c)
	}
	budget := h.Budget
	if budget == 0 {
		budget = DefaultBudget
	}
	for n := 0; ; {
		most := 0
		n = 0
		for j := range h.used {
			if n += h.used[j].n; h.used[j].n > h.used[most].n {
				most = j
			}
		}
		if n == 0 || (n+1)*chunkSize <= budget {
			break
		}
		h.free(h.used[most].first)
	}
	c := &chunk{owner: s, level: i, number: number}
	*at = c
	h.used[i].push(c)
	return c
}

// free forgets c.
func (h *Store) free(c *chunk) {
	h.used[c.level].take(c)
	chunks := c.owner.levels[c.level].chunks
	chunks[c.number%int64(len(chunks))] = nil
}

// forget makes room for another series, if one can be spared that was not in this Add: a quarter of those, the ones that were seen
// last excepted.
func (h *Store) forget() bool {
	var oldest int64 = math.MaxInt64
	for _, s := range h.series {
		oldest = min(oldest, s.seen)
	}
	if oldest >= h.second {
		return false
	}
	limit := oldest + (h.second-oldest)/4
	for k, s := range h.series {
		if s.seen > limit || s.seen >= h.second {
			continue
		}
		for i := range s.levels {
			for _, c := range s.levels[i].chunks {
				if c != nil {
					h.free(c)
				}
			}
		}
		delete(h.series, k)
	}
	return true
}

// History is what is kept of something: a value for each step since Start, the oldest first.
type History struct {
	Step                                time.Duration
	Start                               time.Time
	In, Out, Visitors, Requests, Errors []float64 // as in Rates
}

// longest is how far back there is something.
const longest = 2 * 24 * time.Hour

// Get returns what is kept of a service; of a site if service is "", and of everything if site is, too: of as much time before now as
// span says, in the finest steps that there are. A span of 0 is an hour. What nothing is known of was nothing.
func (h *Store) Get(site, service string, span time.Duration, now time.Time) History {
	if span <= 0 {
		span = time.Hour
	}
	span = min(span, longest)
	i := 0
	for i < len(levels)-1 && time.Duration(levels[i].step*levels[i].points)*time.Second < span {
		i++
	}
	step, second := levels[i].step, now.Unix()
	last := second / step
	n := min(levels[i].points, max(1, int64(span/time.Second)/step))
	first := last - n + 1
	past := History{Step: time.Duration(step) * time.Second, Start: time.Unix(first*step, 0).UTC()}
	for _, list := range []*[]float64{&past.In, &past.Out, &past.Visitors, &past.Requests, &past.Errors} {
		*list = make([]float64, n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.series[key{site, service}]
	if s == nil || s.levels[i].chunks == nil {
		return past
	}
	chunks := s.levels[i].chunks
	for p := first; p <= last; p++ {
		c := chunks[p/chunkPoints%int64(len(chunks))]
		if c == nil || c.number != p/chunkPoints {
			continue
		}
		v, at := &c.values[p%chunkPoints], p-first
		r := Rates{v[0].decode(), v[1].decode(), v[2].decode(), v[3].decode(), v[4].decode()}
		if l := &s.levels[i]; p == last && p == l.step { // the step is not over
			n := float64(min(step, max(1, h.second-p*step+1)))
			r = Rates{l.sum.In / n, l.sum.Out / n, l.sum.Visitors / n, l.sum.Requests / n, l.sum.Errors / n}
		}
		past.In[at], past.Out[at], past.Visitors[at], past.Requests[at], past.Errors[at] = r.In, r.Out, r.Visitors, r.Requests, r.Errors
	}
	return past
}

// value is a number that is not negative, in 16 bits: 6 of an exponent and 10 of a fraction. It is exact to one part in 2048,
// whole numbers up to 2048 are exact, and what is less than 1/4096 is 0.
type value uint16

const bias = 12

func encode(f float64) value {
	if !(f > 0) {
		return 0
	}
	fraction, exponent := math.Frexp(f) // fraction is in [0.5, 1)
	m := int(math.Round(fraction*2048)) - 1024
	if m == 1024 {
		m, exponent = 0, exponent+1
	}
	switch e := exponent + bias; {
	case e < 1:
		return 0
	case e > 63:
		return math.MaxUint16
	default:
		return value(e<<10 | m)
	}
}

func (v value) decode() float64 {
	if v == 0 {
		return 0
	}
	return math.Ldexp(float64(1024+int(v&1023)), int(v>>10)-bias-11)
}
