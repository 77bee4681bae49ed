package alert

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// maxRetry is how long a sender that fails is let be, at most.
const maxRetry = 15 * time.Minute

// sink is a Sender and what it has told. Fields but wake are guarded by Center.mu.
type sink struct {
	c      *Center
	sender Sender
	wake   chan struct{} // has one when there may be something to tell

	told   map[key]int     // entry.Changes that were told
	spent  map[key]*bucket // messages about an alert
	bucket *bucket         // messages in all
}

func newSink(c *Center, sender Sender) *sink {
	return &sink{c: c, sender: sender, wake: make(chan struct{}, 1), told: make(map[key]int), spent: make(map[key]*bucket), bucket: &bucket{burst: messageBurst}}
}

func (s *sink) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// bucket has burst tokens at first, and gets one each step.
type bucket struct {
	burst int
	free  time.Time // when the last token that was taken would be back, if they came one by one
}

// wait returns how long it takes until there is a token.
func (b *bucket) wait(now time.Time, step time.Duration) time.Duration {
	if b.free.Before(now) { // long ago: the difference may not fit
		return 0
	}
	return max(0, b.free.Sub(now)-time.Duration(b.burst-1)*step)
}

func (b *bucket) take(now time.Time, step time.Duration) {
	if b.free.Before(now) {
		b.free = now
	}
	b.free = b.free.Add(step)
}

// change has tokens come at another step: as many are missing as before.
func (b *bucket) change(now time.Time, from, to time.Duration) {
	if b.free.After(now) {
		b.free = now.Add(time.Duration(float64(b.free.Sub(now)) / float64(from) * float64(to)))
	}
}

// run tells what there is to tell until ctx ends.
func (s *sink) run(ctx context.Context) {
	failed := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			if failed > 0 { // it is no better than it was because there is more to tell
				continue
			}
		case <-timer.C:
		}
		m, keys, next := s.next(time.Now())
		if m == nil {
			if next > 0 {
				timer.Reset(next)
			}
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, cmp.Or(s.c.Timeout, 30*time.Second))
		err := s.sender.Send(attempt, m)
		cancel()
		switch {
		case ctx.Err() != nil && err != nil:
			return
		case err != nil:
			if failed == 0 && s.c.OnTrouble != nil {
				s.c.OnTrouble(s.sender.String(), err)
			}
			wait := min(cmp.Or(s.c.Retry, 5*time.Second)<<min(failed, 20), maxRetry)
			failed++
			timer.Reset(wait/2 + rand.N(wait/2+1))
			continue
		case failed > 0:
			failed = 0
			if s.c.OnTrouble != nil {
				s.c.OnTrouble(s.sender.String(), nil)
			}
		}
		s.sent(keys)
		timer.Reset(0)
	}
}

// interval and step are how often one alert is told, and anything is.
func (c *Center) interval() time.Duration { return cmp.Or(c.Interval, 10*time.Minute) }
func (c *Center) step() time.Duration     { return time.Hour / time.Duration(cmp.Or(c.PerHour, 12)) }

// next returns what is to be told now, with the changes that it tells; or nil, and when to look again (0: when something changes).
func (s *sink) next(now time.Time) (m *Message, keys map[key]int, wait time.Duration) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	later := func(d time.Duration) {
		if wait == 0 || d < wait {
			wait = d
		}
	}
	var due []*entry
	for k, e := range c.entries {
		if s.told[k] == e.Changes {
			continue
		}
		if b := s.spent[k]; b != nil {
			if d := b.wait(now, c.interval()); d > 0 {
				later(d)
				continue
			}
		}
		due = append(due, e)
	}
	if len(due) == 0 {
		return nil, nil, wait
	}
	if d := s.bucket.wait(now, c.step()); d > 0 {
		return nil, nil, d
	}
	slices.SortFunc(due, func(a, b *entry) int {
		if (a.Resolved == nil) != (b.Resolved == nil) { // what is so comes before what was
			if a.Resolved == nil {
				return -1
			}
			return 1
		}
		return older(a.Alert, b.Alert)
	})
	m = &Message{Relay: c.Relay, Time: now, More: max(0, len(due)-maxMessage)}
	keys = make(map[key]int)
	for i, e := range due {
		k := key{e.Kind, e.Subject}
		keys[k] = e.Changes
		if i >= maxMessage {
			continue
		}
		t := Told{Alert: e.Alert, Status: "firing"}
		if e.Resolved != nil {
			t.Status = "resolved"
		}
		// It begins with odd changes, and ends with even ones.
		if times := (e.Changes+1)/2 - (s.told[k]+1)/2; times > 1 {
			t.Times = times
		}
		m.Alerts = append(m.Alerts, t)
	}
	return m, keys, 0
}

// sent notes what has arrived.
func (s *sink) sent(keys map[key]int) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s.bucket.take(now, c.step())
	for k, n := range keys {
		s.told[k] = n
		b := s.spent[k]
		if b == nil {
			b = &bucket{burst: alertBurst}
			s.spent[k] = b
		}
		b.take(now, c.interval())
	}
	c.tidyLocked()
	c.saveLocked()
}
