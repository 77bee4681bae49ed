// Package alert tells operators, by webhook and mail, of what they should look after, and when it is over.
//
//	c := &alert.Center{Relay: "relay.example.com", Path: "alerts.json"}
//	c.SetSenders(&alert.Webhook{URL: u, Secret: secret}, &alert.Mail{Server: "smtp.example.com:587", …})
//	go c.Run(ctx)
//	c.Observe("site-away", []alert.Condition{{Subject: "office", Text: "no session since 10:04"}}) // each time it was looked
//
// Invariants: whoever observes never waits for anybody who is told. A condition is told once when it begins and once when
// it is over, however often it is observed, also if Senders are set anew or the process starts again. Nothing is queued: what a
// sender has told of each alert is compared with what is so now, thus what could not be told in time, or was held back because
// there was too much of it, goes into one message. Each sender has its own goroutine, and its own limits.
package alert

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"culvert.dev/pkg/atomicfile"
)

const (
	maxOpen    = 1000 // alerts that are known at once; what is observed beyond is counted in the text of the last one
	maxDone    = 200  // alerts that are over and still listed
	maxMessage = 50   // alerts in one message; the others are counted

	// Each alert may be told twice at once, so that its end may follow its beginning, and a sender's messages may come in a bunch.
	alertBurst   = 2
	messageBurst = 5
)

// Condition is something that is so.
type Condition struct {
	Subject string // the site, the name of the certificate, the folder
	Text    string // one sentence about it
}

// Alert is a condition over time.
type Alert struct {
	ID       string     `json:"id"`
	Kind     string     `json:"kind"`
	Subject  string     `json:"subject"`
	Text     string     `json:"text"`
	Since    time.Time  `json:"since"`
	Resolved *time.Time `json:"resolved,omitempty"` // nil: it is still so
}

// Message is what a Sender is to tell.
type Message struct {
	Relay  string    `json:"relay"`
	Time   time.Time `json:"time"`
	Alerts []Told    `json:"alerts"`
	More   int       `json:"more,omitempty"` // alerts that are not listed, since there are too many
}

// Told is an alert in a Message.
type Told struct {
	Alert
	Status string `json:"status"`          // "firing" or "resolved"
	Times  int    `json:"times,omitempty"` // how often it has begun since it was last told, if more than once
}

// Sender tells somebody. Send returns nil if the message has arrived; otherwise it is asked again later. It gives up when
// ctx ends.
type Sender interface {
	Send(ctx context.Context, m *Message) error

	// String names the sender to operators, without secrets. Two that have the same name are the same one.
	String() string
}

// Center keeps alerts and has Senders tell of them. Fields are set before its methods are called.
type Center struct {
	Relay string // in messages: the relay's name

	// Path is a file for what is open, and what was told: a process that starts again goes on with it. "": there is none.
	Path string

	Interval time.Duration // an alert that comes and goes is told twice, and then once in each of these. 0: 10 min. See SetLimits
	PerHour  int           // messages that a sender sends, after five at once. 0: 12. See SetLimits
	Timeout  time.Duration // of one attempt to send. 0: 30 s
	Retry    time.Duration // until the second attempt; doubled for each further one, up to 15 min. 0: 5 s

	// OnTrouble is told that a sender has failed, in its goroutine; nil error: that it works again. If nil, nobody is.
	OnTrouble func(sender string, err error)

	// OnFile is told that the file could not be written, or read. If nil, nobody is.
	OnFile func(error)

	mu      sync.Mutex
	loaded  bool
	entries map[key]*entry
	done    []Alert // that are over, the oldest first
	sinks   []*sink
	waiting map[string]map[key]int // what senders of an earlier process have told, until they are there
	changed chan struct{}          // has one when senders were set
}

// key is what there is one alert of at a time.
type key struct{ kind, subject string }

// entry is what is known of a key. It goes when it is over and everybody was told.
type entry struct {
	Alert
	Changes int `json:"changes"` // how often it has begun, and ended
}

// file is what Path has.
type file struct {
	Alerts []*entry                `json:"alerts"`
	Done   []Alert                 `json:"done"`
	Told   map[string][]toldChange `json:"told"` // by sender
}

type toldChange struct {
	Kind    string `json:"kind"`
	Subject string `json:"subject"`
	Changes int    `json:"changes"`
}

// loadLocked reads the file, once.
func (c *Center) loadLocked() {
	if c.loaded {
		return
	}
	c.loaded = true
	c.entries = make(map[key]*entry)
	c.waiting = make(map[string]map[key]int)
	c.changed = make(chan struct{}, 1)
	if c.Path == "" {
		return
	}
	b, err := os.ReadFile(c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var f file
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		c.trouble(fmt.Errorf("alerts: %w; beginning anew", err))
		return
	}
	for _, e := range f.Alerts {
		if e != nil && len(c.entries) < maxOpen {
			c.entries[key{e.Kind, e.Subject}] = e
		}
	}
	c.done = f.Done[max(0, len(f.Done)-maxDone):]
	for name, list := range f.Told {
		told := make(map[key]int)
		for _, t := range list {
			told[key{t.Kind, t.Subject}] = t.Changes
		}
		c.waiting[name] = told
	}
}

func (c *Center) trouble(err error) {
	if c.OnFile != nil {
		c.OnFile(err)
	}
}

// saveLocked writes the file.
func (c *Center) saveLocked() {
	if c.Path == "" {
		return
	}
	f := file{Alerts: slices.Collect(maps.Values(c.entries)), Done: c.done, Told: make(map[string][]toldChange)}
	slices.SortFunc(f.Alerts, func(a, b *entry) int { return older(a.Alert, b.Alert) })
	add := func(name string, told map[key]int) {
		list := []toldChange{}
		for k, n := range told {
			list = append(list, toldChange{k.kind, k.subject, n})
		}
		f.Told[name] = list
	}
	for name, told := range c.waiting {
		add(name, told)
	}
	for _, s := range c.sinks {
		add(s.sender.String(), s.told)
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = atomicfile.Write(c.Path, b, 0o600)
	}
	if err != nil {
		c.trouble(fmt.Errorf("alerts: %w", err))
	}
}

func older(a, b Alert) int {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
}

// Observe says which conditions of a kind there are now: those that are new begin, those that are missing are over.
func (c *Center) Observe(kind string, now []Condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loadLocked()
	at := time.Now()
	dirty := false
	there := make(map[string]bool)
	for _, x := range now {
		there[x.Subject] = true
		e := c.entries[key{kind, x.Subject}]
		switch {
		case e != nil && e.Resolved == nil:
			e.Text = x.Text
			continue
		case e == nil && len(c.entries) >= maxOpen:
			continue
		case e == nil:
			e = new(entry)
			c.entries[key{kind, x.Subject}] = e
		}
		e.Alert = Alert{ID: newID(), Kind: kind, Subject: x.Subject, Text: x.Text, Since: at}
		e.Changes++
		dirty = true
	}
	for k, e := range c.entries {
		if k.kind == kind && e.Resolved == nil && !there[k.subject] {
			e.Resolved = &at
			e.Changes++
			c.done = append(c.done, e.Alert)
			c.done = slices.Delete(c.done, 0, max(0, len(c.done)-maxDone))
			dirty = true
		}
	}
	if dirty {
		c.tidyLocked()
		c.saveLocked()
		for _, s := range c.sinks {
			s.nudge()
		}
	}
}

// tidyLocked forgets what is over and was told to everybody, so long ago that it may be told again.
func (c *Center) tidyLocked() {
	now := time.Now()
	for k, e := range c.entries {
		if e.Resolved == nil || slices.ContainsFunc(c.sinks, func(s *sink) bool {
			b := s.spent[k]
			return s.told[k] != e.Changes || b != nil && b.free.After(now)
		}) {
			continue
		}
		delete(c.entries, k)
		for _, s := range c.sinks {
			delete(s.told, k)
			delete(s.spent, k)
		}
	}
}

func newID() string {
	var b [6]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// Open reports whether a condition was observed last time, or by an earlier process.
func (c *Center) Open(kind, subject string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loadLocked()
	e := c.entries[key{kind, subject}]
	return e != nil && e.Resolved == nil
}

// List returns the alerts that there are, the newest first, and then those that are over.
func (c *Center) List() []Alert {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loadLocked()
	all := []Alert{}
	for _, e := range c.entries {
		if e.Resolved == nil {
			all = append(all, e.Alert)
		}
	}
	slices.SortFunc(all, older)
	slices.Reverse(all)
	for i := len(c.done) - 1; i >= 0; i-- {
		all = append(all, c.done[i])
	}
	return all
}

// SetSenders has these told from now on, and no others. One that is new, by its String, is told of what begins from now on; one that was
// there before goes on where it was.
func (c *Center) SetSenders(senders ...Sender) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loadLocked()
	old := c.sinks
	c.sinks = nil
	for _, sender := range senders {
		name := sender.String()
		s := newSink(c, sender)
		switch i := slices.IndexFunc(old, func(o *sink) bool { return o.sender.String() == name }); {
		case i >= 0:
			s.told, s.spent, s.bucket = old[i].told, old[i].spent, old[i].bucket
		case c.waiting[name] != nil:
			s.told = c.waiting[name]
		default:
			for k, e := range c.entries {
				s.told[k] = e.Changes
			}
		}
		delete(c.waiting, name)
		c.sinks = append(c.sinks, s)
	}
	c.tidyLocked()
	c.saveLocked()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// SetLimits replaces Interval and PerHour, also for what is held back already. SetSenders has to follow.
func (c *Center) SetLimits(interval time.Duration, perHour int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, each, all := time.Now(), c.interval(), c.step()
	c.Interval, c.PerHour = interval, perHour
	for _, s := range c.sinks {
		s.bucket.change(now, all, c.step())
		for _, b := range s.spent {
			b.change(now, each, c.interval())
		}
	}
}

// Run tells whoever is to be told, until ctx ends. It returns when nobody is being told any more.
func (c *Center) Run(ctx context.Context) {
	c.mu.Lock()
	c.loadLocked()
	c.mu.Unlock()
	for ctx.Err() == nil {
		c.mu.Lock()
		sinks := c.sinks
		select {
		case <-c.changed: // to these
		default:
		}
		c.mu.Unlock()
		round, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for _, s := range sinks {
			wg.Go(func() { s.run(round) })
		}
		select {
		case <-ctx.Done():
		case <-c.changed:
		}
		cancel()
		wg.Wait()
	}
}

// Test has each sender tell of an alert that is none, and returns what came of it, by sender: nil if it has arrived.
func (c *Center) Test(ctx context.Context) map[string]error {
	c.mu.Lock()
	c.loadLocked()
	sinks := c.sinks
	c.mu.Unlock()
	now := time.Now()
	m := &Message{Relay: c.Relay, Time: now, Alerts: []Told{{
		Alert:  Alert{ID: newID(), Kind: "test", Subject: c.Relay, Text: "This is a test: nothing is wrong.", Since: now, Resolved: &now},
		Status: "resolved",
	}}}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Timeout, 30*time.Second))
	defer cancel()
	results := make([]error, len(sinks))
	var wg sync.WaitGroup
	for i, s := range sinks {
		wg.Go(func() { results[i] = s.sender.Send(ctx, m) })
	}
	wg.Wait()
	came := make(map[string]error)
	for i, s := range sinks {
		came[s.sender.String()] = results[i]
	}
	return came
}
