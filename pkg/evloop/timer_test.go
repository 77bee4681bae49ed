package evloop

import (
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestWheel compares the wheel with a list of times, over steps that are small, large and as next says.
func TestWheel(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		start := time.Unix(1000, 0)
		var w wheel
		w.init(start)
		now := start
		timers := make([]Timer, 200)
		due := make([]time.Time, len(timers)) // zero: stopped
		arm := func(i int) {
			timers[i].Stop()
			due[i] = now.Add(time.Duration(r.Int64N(int64(70 * time.Second))))
			timers[i].f = func() {
				if due[i].IsZero() || now.Before(due[i]) {
					t.Fatalf("seed %d: timer %d fired at %v, due %v", seed, i, now, due[i])
				}
				due[i] = time.Time{}
			}
			w.add(&timers[i], due[i])
		}
		for range 400 {
			for range r.IntN(4) {
				i := r.IntN(len(timers))
				if r.IntN(3) == 0 {
					timers[i].Stop()
					due[i] = time.Time{}
				} else {
					arm(i)
				}
			}
			next := w.next()
			for i, d := range due {
				if !d.IsZero() && (next.IsZero() || next.After(d.Add(tick))) {
					t.Fatalf("seed %d: next is %v, timer %d is due %v", seed, next, i, d)
				}
			}
			switch r.IntN(3) {
			case 0:
				now = now.Add(time.Duration(r.Int64N(int64(100 * time.Millisecond))))
			case 1:
				now = now.Add(time.Duration(r.Int64N(int64(60 * time.Second))))
			case 2:
				if next.After(now) {
					now = next
				}
			}
			w.advance(now)
			for i, d := range due {
				if !d.IsZero() && now.Sub(d) >= tick {
					t.Fatalf("seed %d: timer %d, due %v, has not fired at %v", seed, i, d, now)
				}
			}
		}
	}
}

func TestWheelEmpties(t *testing.T) {
	var w wheel
	now := time.Unix(0, 0)
	w.init(now)
	var a, b Timer
	w.add(&a, now.Add(time.Second))
	w.add(&b, now.Add(time.Minute))
	a.Stop()
	b.Stop()
	for range 3 {
		w.advance(now.Add(time.Hour))
	}
	if n := w.next(); !n.IsZero() {
		t.Errorf("an empty wheel has something to do at %v", n)
	}
}

func TestTimer(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		start := time.Now()
		var a, b, c Timer
		var fired []time.Duration
		run(l, func() {
			n := 0
			var again func()
			again = func() { // re-arms itself in its own callback, the second time for the past
				fired = append(fired, time.Since(start).Round(tick))
				switch n++; n {
				case 1:
					l.Arm(&a, 30*time.Second, again)
				case 2:
					l.Arm(&a, -time.Second, again)
				}
			}
			l.Arm(&a, 5*time.Second, again)
			l.Arm(&b, time.Second, func() { c.Stop() })
			l.Arm(&c, time.Second, func() { t.Error("a stopped timer fired") })
		})
		time.Sleep(time.Minute)
		run(l, func() {
			if len(fired) != 3 || fired[0] != 5*time.Second || fired[1] != 35*time.Second || fired[2]-fired[1] > 2*tick {
				t.Errorf("fired at %v", fired)
			}
		})
	})
}

// TestTimerAfterSleep arms a timer in the callback that ends a long sleep of the loop.
func TestTimerAfterSleep(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		a, b := net.Pipe()
		defer a.Close()
		var timer Timer
		var after time.Duration
		run(l, func() {
			c, _ := l.Attach(b)
			c.SetHandler(&events{data: func(b []byte) int {
				armed := time.Now()
				l.Arm(&timer, 5*time.Second, func() { after = time.Since(armed) })
				return len(b)
			}})
		})
		time.Sleep(time.Hour)
		a.Write([]byte("x"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		run(l, func() {
			if after < 5*time.Second || after > 5*time.Second+2*tick {
				t.Errorf("a timer of 5 s took %v", after)
			}
		})
	})
}
