package daemon

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Bounds of a LogRing.
const (
	ringRecords = 2000
	ringBytes   = 2 << 20 // of texts
	ringUnread  = 500     // records that wait for a follower
	ringAttrs   = 32      // of a record
	ringText    = 2 << 10 // bytes of a message, or of the value of an attribute
)

// LogRing keeps the last 2000 records of a log, or 2 MiB of them, for operators. The zero value is empty. It is safe for use by
// several goroutines.
type LogRing struct {
	mu        sync.Mutex
	records   []LogRecord // the next one goes to n modulo ringRecords
	n         int
	bytes     int
	oldest    int // number of the oldest that is kept
	followers map[*logFollower]bool
}

// LogRecord is a record of a log, as text.
type LogRecord struct {
	Time    time.Time
	Level   slog.Level
	Message string
	Attrs   []LogAttr // in their order
	size    int
}

// LogAttr is one attribute. Those of groups have dots in their names.
type LogAttr struct{ Name, Value string }

// Handler returns a handler that keeps what next takes.
func (r *LogRing) Handler(next slog.Handler) slog.Handler { return &ringHandler{ring: r, next: next} }

// ringHandler is the handler of a LogRing.
type ringHandler struct {
	ring  *LogRing
	next  slog.Handler
	attrs []LogAttr
	group string // with a dot behind it
}

func (h *ringHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h *ringHandler) Handle(ctx context.Context, r slog.Record) error {
	one := LogRecord{Time: r.Time, Level: r.Level, Message: clip(r.Message), Attrs: slices.Clip(h.attrs)}
	r.Attrs(func(a slog.Attr) bool {
		one.Attrs = appendAttr(one.Attrs, h.group, a)
		return true
	})
	h.ring.add(one)
	return h.next.Handle(ctx, r)
}

func (h *ringHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.next, n.attrs = h.next.WithAttrs(attrs), slices.Clip(h.attrs)
	for _, a := range attrs {
		n.attrs = appendAttr(n.attrs, h.group, a)
	}
	return &n
}

func (h *ringHandler) WithGroup(name string) slog.Handler {
	n := *h
	if n.next = h.next.WithGroup(name); name != "" {
		n.group += name + "."
	}
	return &n
}

// appendAttr appends a, and what is in it if it is a group.
func appendAttr(list []LogAttr, group string, a slog.Attr) []LogAttr {
	v := a.Value.Resolve()
	switch {
	case len(list) >= ringAttrs, a.Key == "" && v.Kind() != slog.KindGroup:
		return list
	case v.Kind() != slog.KindGroup:
		return append(list, LogAttr{clip(group + a.Key), clip(v.String())})
	case a.Key != "":
		group += a.Key + "."
	}
	for _, in := range v.Group() {
		list = appendAttr(list, group, in)
	}
	return list
}

// clip is s, of which there may be too much.
func clip(s string) string {
	if len(s) <= ringText {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	n := ringText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "\uFFFD") + "…"
}

// add keeps a record.
func (r *LogRing) add(one LogRecord) {
	one.size = len(one.Message)
	for _, a := range one.Attrs {
		one.size += len(a.Name) + len(a.Value)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.records) < ringRecords {
		r.records = append(r.records, LogRecord{})
	} else if r.oldest == r.n-ringRecords {
		r.drop()
	}
	r.records[r.n%ringRecords] = one
	r.n++
	for r.bytes += one.size; r.bytes > ringBytes; {
		r.drop()
	}
	for f := range r.followers {
		if len(f.unread) < ringUnread {
			f.unread = append(f.unread, one)
		} else {
			f.skipped++
		}
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
}

// drop forgets the oldest record.
func (r *LogRing) drop() {
	one := &r.records[r.oldest%ringRecords]
	r.bytes -= one.size
	*one = LogRecord{}
	r.oldest++
}

// Last returns the last n records that are kept, the oldest first; all of them if n is 0 or more than there are.
func (r *LogRing) Last(n int) []LogRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last(n)
}

func (r *LogRing) last(n int) []LogRecord {
	if n <= 0 || n > r.n-r.oldest {
		n = r.n - r.oldest
	}
	list := make([]LogRecord, 0, n)
	for i := r.n - n; i < r.n; i++ {
		list = append(list, r.records[i%ringRecords])
	}
	return list
}

// logFollower is somebody who follows. Its fields but news are guarded by the ring's mu.
type logFollower struct {
	unread  []LogRecord
	skipped int
	news    chan struct{} // takes one
}

// Follow calls send with the last n records, none if n is 0, and with each that comes from then on, until ctx ends or send fails. Of
// a burst that send is too slow for, the newest are left out: skipped is how many since the last call.
func (r *LogRing) Follow(ctx context.Context, n int, send func(one LogRecord, skipped int) error) error {
	me := &logFollower{news: make(chan struct{}, 1)}
	r.mu.Lock()
	if r.followers == nil {
		r.followers = make(map[*logFollower]bool)
	}
	r.followers[me] = true
	var list []LogRecord
	if n > 0 {
		list = r.last(n)
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.followers, me)
		r.mu.Unlock()
	}()
	skipped := 0
	for {
		for _, one := range list {
			if err := send(one, skipped); err != nil {
				return err
			}
			skipped = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-me.news:
		}
		r.mu.Lock()
		list, me.unread = me.unread, nil
		skipped, me.skipped = skipped+me.skipped, 0
		r.mu.Unlock()
	}
}
