package history

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Unix(1_800_000_000, 0) // the beginning of a step of each level

// Numbers up to 2048 are exact, others to one part in two thousand, over all that a relay can see.
func TestValue(t *testing.T) {
	for n := range 2049 {
		if got := encode(float64(n)).decode(); got != float64(n) {
			t.Errorf("%d becomes %v", n, got)
		}
	}
	for range 100000 {
		f := math.Exp2(rand.Float64()*58 - 11)
		if got := encode(f).decode(); math.Abs(got-f) > f/2048 {
			t.Fatalf("%v becomes %v", f, got)
		}
	}
	for _, f := range []float64{0, -1, math.NaN(), math.Inf(-1), 1e-9} {
		if got := encode(f); got != 0 {
			t.Errorf("%v becomes %v", f, got.decode())
		}
	}
	if got := encode(math.Inf(1)).decode(); got < 1e15 || math.IsInf(got, 0) {
		t.Errorf("infinity becomes %v", got)
	}
}

// A service that carries 1000 bytes in each second, and 3000 in each that ends an hour, is seen so in steps of each level.
func TestLevels(t *testing.T) {
	var h Store
	var in, requests uint64
	now := start
	for range 3 * 3600 {
		now = now.Add(time.Second)
		if in += 1000; now.Unix()%3600 == 3599 {
			in += 2000
		}
		requests++
		h.Add(now, []Sample{
			{Site: "office", Service: "web", Visitors: 7, In: in, Out: 2 * in, Requests: requests, Errors: requests / 2},
			{Site: "office", Service: "ssh", Visitors: 1, In: in},
			{Site: "home", Service: "web", In: in},
			{Site: "home", Service: "silent"},
		})
	}
	for _, c := range []struct {
		span, step time.Duration
		n          int
	}{{0, 15 * time.Second, 240}, {time.Minute, time.Second, 60}, {5 * time.Minute, time.Second, 300}, {5*time.Minute + 1, 15 * time.Second, 20},
		{2 * time.Hour, 15 * time.Second, 480}, {3 * time.Hour, 5 * time.Minute, 36}, {365 * 24 * time.Hour, 5 * time.Minute, 576}, {time.Nanosecond, time.Second, 1}} {
		t.Run(c.span.String(), func(t *testing.T) {
			got := h.Get("office", "web", c.span, now)
			if got.Step != c.step || len(got.In) != c.n || len(got.Errors) != c.n {
				t.Fatalf("got %d of %v", len(got.In), got.Step)
			}
			if end := got.Start.Add(time.Duration(c.n) * c.step); end.Before(now) || end.Sub(now) > c.step {
				t.Errorf("it ends at %v, and now is %v", end, now)
			}
			known := 0
			for i, v := range got.In {
				from := got.Start.Add(time.Duration(i) * c.step)
				to := from.Add(c.step)
				if !from.After(start.Add(time.Second)) { // before the first rate
					continue
				}
				want := 1000.0
				if a, b := from.Add(-time.Second).Unix()/3600, min(to.Unix(), now.Unix()+1)-1; a != b/3600 || b%3600 == 3599 {
					if last := b - b%3600 - 1; last >= from.Unix() {
						want += 2000 / c.step.Seconds()
					} else if b%3600 == 3599 {
						want += 2000 / float64(min(int64(c.step.Seconds()), now.Unix()-from.Unix()+1))
					}
				}
				if math.Abs(v-want) > want/1000 {
					t.Fatalf("step %d from %v: %v, want %v", i, from, v, want)
				}
				if math.Abs(got.Out[i]-2*v) > v/500 || got.Visitors[i] != 7 || got.Requests[i] < 0.99 || got.Requests[i] > 1.01 {
					t.Fatalf("step %d: %v, %v, %v", i, got.Out[i], got.Visitors[i], got.Requests[i])
				}
				known++
			}
			if known < min(c.n, 30) && c.n > 1 {
				t.Errorf("%d steps are known", known)
			}
		})
	}
	minute := func(site, service string) float64 {
		return h.Get(site, service, time.Minute, now.Add(-time.Second)).In[30]
	}
	if one, two, all := minute("office", "web"), minute("office", ""), minute("", ""); one != 1000 || two != 2000 || math.Abs(all-3000) > 3 {
		t.Errorf("got %v of a service, %v of the site, %v of all", one, two, all)
	}
	for _, nobody := range [][2]string{{"home", "silent"}, {"nobody", ""}, {"", "web"}} {
		got := h.Get(nobody[0], nobody[1], time.Hour, now)
		for _, v := range got.Visitors {
			if v != 0 {
				t.Fatalf("%q has %v", nobody, v)
			}
		}
	}
	// An hour later nothing of it is newer than an hour.
	later := now.Add(time.Hour)
	h.Add(later, nil)
	for i, v := range h.Get("office", "web", 5*time.Minute, later).In {
		if v != 0 {
			t.Fatalf("second %d, of which nothing is known, has %v", i, v)
		}
	}
}

// Counters that fall have begun anew, and clocks that are set, looks that are missing and those that come twice do no harm.
func TestOddities(t *testing.T) {
	var h Store
	at := func(second int, in uint64) {
		h.Add(start.Add(time.Duration(second)*time.Second), []Sample{{Site: "a", Service: "b", In: in}})
	}
	at(0, 5000)
	at(1, 5100)
	at(1, 9999) // the same second
	at(2, 50)   // the relay of the site has begun anew
	at(5, 350)  // two looks are missing
	at(100, 9850)
	at(-900, 9900) // the clock is set back
	at(-899, 9950)
	got := h.Get("a", "b", 5*time.Minute, start.Add(100*time.Second))
	base := int(start.Sub(got.Start).Seconds())
	for second, want := range map[int]float64{1: 100, 2: 50, 3: 100, 4: 100, 5: 100, 6: 0, 99: 0, 100: 100} {
		if v := got.In[base+second]; v != want {
			t.Errorf("second %d: %v, want %v", second, v, want)
		}
	}
	if got := h.Get("a", "b", time.Minute, start.Add(-899*time.Second)).In; got[59] != 50 {
		t.Errorf("after the clock was set back: %v", got[59])
	}
	var m meter
	m.read(start, nil, nil)
	m.read(start, []Sample{{In: 500}}, func(_ *Sample, r Rates) {
		if !r.IsZero() {
			t.Errorf("got %v in no time", r)
		}
	})
	m.read(start.Add(2*time.Second), []Sample{{In: 500}, {Service: "new", In: 50}}, func(s *Sample, r Rates) {
		if want := map[string]float64{"": 0, "new": 25}[s.Service]; r.In != want {
			t.Errorf("got %v of %q, want %v", r, s.Service, want)
		}
	})
}

// Whatever there is, the budget holds: the newest of each level is kept.
func TestBudget(t *testing.T) {
	const services, budget = 500, 1 << 20
	h := Store{Budget: budget}
	samples := make([]Sample, services)
	for i := range samples {
		samples[i] = Sample{Site: "a", Service: fmt.Sprint(i), Visitors: 1}
	}
	now := start
	for second := range 1200 {
		now = now.Add(time.Second)
		for i := range samples {
			samples[i].In = uint64(second * 100)
		}
		h.Add(now, samples)
		n := 0
		for i := range h.used {
			n += h.used[i].n
		}
		if n*chunkSize > budget {
			t.Fatalf("%d chunks of %d bytes", n, chunkSize)
		}
	}
	for _, span := range []time.Duration{5 * time.Minute, time.Hour, 24 * time.Hour} {
		known := 0
		for i := range samples {
			got := h.Get("a", fmt.Sprint(i), span, now)
			if got.Visitors[len(got.Visitors)-1] > 0.99 {
				known++
			}
		}
		if known < services/2 {
			t.Errorf("%v: the last value is known of %d of %d", span, known, services)
		}
	}
	// Names without end do not grow it, and those that are there now are kept.
	for second := range 300 {
		now = now.Add(time.Second)
		for i := range samples[1:] {
			samples[i+1].Service = fmt.Sprint(second, "-", i)
		}
		samples[0].In += 100
		h.Add(now, samples)
	}
	if len(h.series) > maxSeries || len(h.meter.last) > services {
		t.Errorf("%d series, %d readings", len(h.series), len(h.meter.last))
	}
	if got := h.Get("a", "0", time.Minute, now).In[59]; got != 100 {
		t.Errorf("the service that stays: %v", got)
	}
}

// BenchmarkAdd is a second of ten thousand services, of which one in a hundred carries something.
func BenchmarkAdd(b *testing.B) {
	var h Store
	samples := make([]Sample, 10000)
	for i := range samples {
		samples[i] = Sample{Site: fmt.Sprint("site", i/100), Service: fmt.Sprint("service", i)}
	}
	now := start
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Second)
		for i := range 100 {
			samples[i*100].In += 1000
		}
		h.Add(now, samples)
	}
}
