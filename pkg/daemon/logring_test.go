package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// text is a record on one line.
func (r LogRecord) text() string {
	s := r.Level.String() + " " + r.Message
	for _, a := range r.Attrs {
		s += " " + a.Name + "=" + a.Value
	}
	return s
}

func TestLogRing(t *testing.T) {
	var ring LogRing
	var out strings.Builder
	log := slog.New(ring.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
	if got := ring.Last(0); len(got) != 0 {
		t.Errorf("got %v of an empty one", got)
	}
	log.Debug("nobody wants this")
	log.Info("ready", "https", ":443", "n", 5, "took", time.Second, "err", errors.New("no"))
	site := log.With("site", "office")
	site.WithGroup("link").With("role", "bulk").Warn("lost", "err", "reset", slog.Group("at", "x", 1, slog.Group("y", "z", 2)))
	site.Error("two", slog.Any("err", nil))
	want := []string{
		"INFO ready https=:443 n=5 took=1s err=no",
		"WARN lost site=office link.role=bulk link.err=reset link.at.x=1 link.at.y.z=2",
		"ERROR two site=office err=<nil>",
	}
	for i, r := range ring.Last(0) {
		if r.text() != want[i] || time.Since(r.Time) > time.Minute {
			t.Errorf("got %v %q, want %q", r.Time, r.text(), want[i])
		}
	}
	if got := ring.Last(1); len(got) != 1 || got[0].text() != want[2] {
		t.Errorf("the last one: %v", got)
	}
	if n := strings.Count(out.String(), "\n"); n != 3 || !strings.Contains(out.String(), "link.at.y.z=2") {
		t.Errorf("the log itself has %q", out.String())
	}
}

// enabled takes every record, and does nothing with it.
type enabled struct{ slog.Handler }

func (enabled) Enabled(context.Context, slog.Level) bool { return true }

// However much is logged, what is kept is bounded, and the newest of it.
func TestLogRingBounds(t *testing.T) {
	var ring LogRing
	log := slog.New(ring.Handler(slog.DiscardHandler))
	log.Info("not enabled")
	log = slog.New(ring.Handler(enabled{slog.DiscardHandler}))
	for i := range 5000 {
		log.Info(fmt.Sprint(i))
	}
	got := ring.Last(0)
	if len(got) != ringRecords || got[0].Message != "3000" || got[len(got)-1].Message != "4999" {
		t.Errorf("got %d, from %q", len(got), got[0].Message)
	}
	long := strings.Repeat("ä\xff", ringText)
	var attrs []any
	for i := range 100 {
		attrs = append(attrs, fmt.Sprint("a", i), long)
	}
	for range 100 {
		log.Info(long, attrs...)
	}
	bytes := 0
	got = ring.Last(10000)
	for _, r := range got {
		if bytes += len(r.Message); len(r.Attrs) > ringAttrs {
			t.Fatalf("%d attributes", len(r.Attrs))
		}
		for _, a := range r.Attrs {
			bytes += len(a.Name) + len(a.Value)
		}
	}
	if bytes > ringBytes || bytes < ringBytes/2 || ring.bytes != bytes {
		t.Errorf("%d bytes in %d records, counted as %d", bytes, len(got), ring.bytes)
	}
	log.Info("short")
	if got := ring.Last(1); got[0].Message != "short" {
		t.Errorf("got %q", got[0].Message)
	}
}

// Who follows gets what there was and all that comes, in order; who is slow is told how much was left out.
func TestLogRingFollow(t *testing.T) {
	var ring LogRing
	log := slog.New(ring.Handler(slog.NewTextHandler(new(strings.Builder), nil)))
	log.Info("before")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got, stuck := make(chan string), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- ring.Follow(ctx, 1, func(one LogRecord, skipped int) error {
			if one.Message == "stop" {
				return errors.New("enough")
			}
			got <- fmt.Sprint(one.Message, " ", skipped)
			<-stuck
			return nil
		})
	}()
	if s := <-got; s != "before 0" {
		t.Errorf("got %q", s)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range ringUnread {
				log.Info("many")
			}
		})
	}
	wg.Wait()
	close(stuck)
	for i := range ringUnread {
		want := "many 0"
		if i == 0 {
			want = fmt.Sprint("many ", 3*ringUnread)
		}
		if s := <-got; s != want {
			t.Fatalf("record %d is %q, want %q", i, s, want)
		}
	}
	log.Info("stop")
	if err := <-ended; err == nil || err.Error() != "enough" {
		t.Errorf("it ended by %v", err)
	}
	go func() { ended <- ring.Follow(ctx, 0, nil) }()
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("it ended by %v", err)
	}
	if len(ring.followers) != 0 {
		t.Error("somebody who has gone is remembered")
	}
}
