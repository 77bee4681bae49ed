package alert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Sender that keeps what it is given, unless it fails.
type recorder struct {
	name string
	mu   sync.Mutex
	fail error
	all  []string
}

func (r *recorder) String() string { return r.name }

func (r *recorder) Send(ctx context.Context, m *Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		r.all = append(r.all, "!")
		return r.fail
	}
	r.all = append(r.all, brief(m))
	return nil
}

// brief is a message as tests name it: +office -paris, with how often, and how many more.
func brief(m *Message) string {
	var words []string
	for _, a := range m.Alerts {
		w := map[string]string{"firing": "+", "resolved": "-"}[a.Status] + a.Subject
		if a.Times > 0 {
			w += fmt.Sprint("*", a.Times)
		}
		words = append(words, w)
	}
	if m.More > 0 {
		words = append(words, fmt.Sprint("and ", m.More))
	}
	return strings.Join(words, " ")
}

// take returns what was told since the last time.
func (r *recorder) take() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.all, "|")
	r.all = nil
	return s
}

func (r *recorder) break_(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// running runs c in a bubble, until stop.
func running(c *Center) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

func away(names ...string) (list []Condition) {
	for _, n := range names {
		list = append(list, Condition{n, "no session"})
	}
	return list
}

func want(t *testing.T, r *recorder, told string) {
	t.Helper()
	if got := r.take(); got != told {
		t.Errorf("told %q, want %q", got, told)
	}
}

// What is observed is told once when it begins, and once when it is over.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{name: "r"}
		c := &Center{Relay: "relay"}
		c.SetSenders(r)
		defer running(c)()
		c.Observe("site-away", away("office"))
		want(t, r, "+office")
		c.Observe("site-away", away("office"))
		time.Sleep(time.Hour)
		c.Observe("site-away", away("office", "paris"))
		c.Observe("disk", nil) // is something else
		want(t, r, "+paris")
		if !c.Open("site-away", "paris") || c.Open("disk", "paris") || c.Open("site-away", "rome") {
			t.Error("Open")
		}
		time.Sleep(time.Hour)
		c.Observe("site-away", away("paris"))
		want(t, r, "-office")
		list := c.List()
		if len(list) != 2 || list[0].Subject != "paris" || list[0].Resolved != nil || list[1].Subject != "office" || list[1].Resolved == nil || list[0].ID == list[1].ID {
			t.Errorf("%+v", list)
		}
		if d := list[1].Resolved.Sub(list[1].Since); d < 2*time.Hour {
			t.Errorf("it was so for %v", d)
		}
	})
}

// What comes and goes is told twice, and then with everything that was held back, once in each interval.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{name: "r"}
		c := &Center{}
		c.SetSenders(r)
		defer running(c)()
		for range 5 {
			c.Observe("site-away", away("office"))
			synctest.Wait()
			c.Observe("site-away", nil)
			synctest.Wait()
		}
		want(t, r, "+office|-office")
		time.Sleep(10*time.Minute + time.Second)
		want(t, r, "-office*4")
		time.Sleep(time.Hour)
		want(t, r, "")
		c.Observe("site-away", away("office"))
		want(t, r, "+office")
	})
}

// There are only so many messages in an hour: what is held back is told at once then.
func TestDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{name: "r"}
		c := &Center{}
		c.SetSenders(r)
		defer running(c)()
		var names []string
		for i := range 20 {
			names = append(names, fmt.Sprintf("s%02d", i))
			c.Observe("site-away", away(names...))
			synctest.Wait()
			time.Sleep(time.Second)
		}
		want(t, r, "+s00|+s01|+s02|+s03|+s04")
		c.Observe("site-away", away(names[6:]...)) // two of those are over
		time.Sleep(5 * time.Minute)
		want(t, r, "+s06 +s07 +s08 +s09 +s10 +s11 +s12 +s13 +s14 +s15 +s16 +s17 +s18 +s19 -s00 -s01 -s02 -s03 -s04 -s05")

		names = nil
		for i := range 80 {
			names = append(names, fmt.Sprintf("t%02d", i))
		}
		time.Sleep(10 * time.Hour)
		c.Observe("disk", away(names...))
		if got := r.take(); !strings.HasPrefix(got, "+t") || !strings.HasSuffix(got, " and 30") || strings.Contains(got, "|") {
			t.Errorf("told %q", got)
		}
	})
}

// A sender that fails is asked again, less and less often, and tells everything that has been since. Others do not wait for it.
// Other limits are good for what is held back already: as many messages are owed as before, at another pace.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{name: "r"}
		c := &Center{PerHour: 1, Interval: 24 * time.Hour}
		c.SetSenders(r)
		defer running(c)()
		var sites []string
		for i := range messageBurst + 1 {
			sites = append(sites, fmt.Sprint(i))
			c.Observe("away", away(sites...))
			synctest.Wait()
		}
		want(t, r, "+0|+1|+2|+3|+4")
		c.SetLimits(24*time.Hour, 3600)
		c.SetSenders(r)
		time.Sleep(time.Second)
		want(t, r, "+5")

		// One that comes and goes is told twice at once.
		for range 2 {
			time.Sleep(time.Minute)
			c.Observe("away", nil)
			synctest.Wait()
			c.Observe("away", away("0"))
			synctest.Wait()
		}
		r.take()
		time.Sleep(time.Hour)
		want(t, r, "")
		c.SetLimits(time.Minute, 3600)
		c.SetSenders(r)
		time.Sleep(time.Minute)
		want(t, r, "+0*2")
	})
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &recorder{name: "bad", fail: errors.New("no route")}, &recorder{name: "good"}
		var troubles []string
		c := &Center{OnTrouble: func(sender string, err error) { troubles = append(troubles, fmt.Sprint(sender, " ", err)) }}
		c.SetSenders(bad, good)
		defer running(c)()
		start := time.Now()
		c.Observe("disk", away("/state"))
		want(t, good, "+/state")
		time.Sleep(10 * time.Minute)
		if got := bad.take(); got != "!|!|!|!|!|!|!|!" && got != "!|!|!|!|!|!|!" && got != "!|!|!|!|!|!|!|!|!" {
			t.Errorf("tried %q", got)
		}
		c.Observe("disk", nil)
		want(t, good, "-/state")
		bad.break_(nil)
		time.Sleep(20 * time.Minute)
		want(t, bad, "-/state")
		if !slices.Equal(troubles, []string{"bad no route", "bad <nil>"}) {
			t.Errorf("%q", troubles)
		}
		if time.Since(start) > time.Hour {
			t.Error("that took long")
		}
	})
}

// Senders that were set before Run are not begun twice: that would send a message again, and forget that they fail.
func TestBegin(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			bad := &recorder{name: "bad", fail: errors.New("no route")}
			c := new(Center)
			c.SetSenders(bad)
			c.Observe("disk", away("/state"))
			defer running(c)()
			time.Sleep(time.Second)
			want(t, bad, "!")
		})
	}
}

// New senders are told of what is new, those that there were go on; and so it is after a restart.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alerts.json")
	synctest.Test(t, func(t *testing.T) {
		a, b := &recorder{name: "a"}, &recorder{name: "b"}
		c := &Center{Path: path, OnFile: func(err error) { t.Error(err) }}
		c.SetSenders(a)
		stop := running(c)
		c.Observe("site-away", away("office"))
		want(t, a, "+office")
		a2 := &recorder{name: "a"} // the same, made anew
		c.SetSenders(a2, b)
		time.Sleep(time.Hour)
		want(t, a2, "")
		want(t, b, "")
		c.Observe("site-away", away("office", "paris"))
		want(t, a2, "+paris")
		want(t, b, "+paris")
		b.break_(errors.New("down"))
		time.Sleep(time.Second)
		c.Observe("site-away", away("office", "paris", "rome"))
		want(t, a2, "+rome")
		want(t, b, "!")
		stop()

		// Another process. One sender has not told everything yet.
		a3, b3, c3 := &recorder{name: "a"}, &recorder{name: "b"}, &recorder{name: "c"}
		c = &Center{Path: path, OnFile: func(err error) { t.Error(err) }}
		c.SetSenders(a3, b3, c3)
		stop = running(c)
		want(t, a3, "")
		want(t, b3, "+rome")
		want(t, c3, "")
		if !c.Open("site-away", "office") || len(c.List()) != 3 {
			t.Errorf("%+v", c.List())
		}
		c.Observe("site-away", away("office"))
		for _, r := range []*recorder{a3, b3, c3} {
			want(t, r, "-paris -rome")
		}
		stop()
	})
	synctest.Test(t, func(t *testing.T) {
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		var errs []error
		c := &Center{Path: path, OnFile: func(err error) { errs = append(errs, err) }}
		if len(c.List()) != 0 || len(errs) != 1 {
			t.Errorf("%v %v", c.List(), errs)
		}
		c.Path = filepath.Join(path, "no", "folder")
		c.Observe("disk", away("/state")) // that there is no file hinders nobody
		if len(c.List()) != 1 || len(errs) != 2 {
			t.Errorf("%v %v", c.List(), errs)
		}
	})
}

// However much there is, memory is bounded, and whoever observes does not wait.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{name: "r", fail: errors.New("down")}
		c := &Center{}
		c.SetSenders(r)
		defer running(c)()
		for i := range 3000 {
			c.Observe("site-away", away(fmt.Sprint(i)))
		}
		if len(c.entries) > maxOpen || len(c.done) > maxDone {
			t.Errorf("%d entries, %d done", len(c.entries), len(c.done))
		}
	})
}

func TestTestAlert(t *testing.T) {
	c := &Center{Relay: "relay.example.com"}
	r, bad := &recorder{name: "r"}, &recorder{name: "bad", fail: errors.New("no route")}
	c.SetSenders(r, bad)
	got := c.Test(context.Background())
	if len(got) != 2 || got["r"] != nil || got["bad"] == nil || r.all[0] != "-relay.example.com" {
		t.Errorf("%v, %v", got, r.all)
	}
	if len(c.List()) != 0 {
		t.Error("the test is an alert")
	}
}

func TestDisk(t *testing.T) {
	free, total, err := Disk(t.TempDir())
	if err != nil || total == 0 || free > total {
		t.Error(free, total, err)
	}
	if _, _, err := Disk(filepath.Join(t.TempDir(), "no")); err == nil {
		t.Error("a folder that is not there has free bytes")
	}
}
