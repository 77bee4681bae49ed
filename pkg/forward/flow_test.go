package forward

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// namedFlow writes its name when it is over.
type namedFlow struct {
	Flow
	name string
	log  *strings.Builder
}

func (f *namedFlow) Expire() { fmt.Fprintf(f.log, "%s ", f.name) }

func newFlow(name string, log *strings.Builder) *namedFlow {
	f := &namedFlow{name: name, log: log}
	f.Owner = f
	return f
}

func TestFlowsExpire(t *testing.T) {
	var table Flows
	var over strings.Builder
	start := time.Unix(0, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	a, b, c := newFlow("a", &over), newFlow("b", &over), newFlow("c", &over)
	src := netip.MustParseAddr("192.0.2.1")
	table.Add(&a.Flow, src, at(0))
	table.Add(&b.Flow, src, at(1))
	table.Add(&c.Flow, src, at(2))
	table.Touch(&b.Flow, true, at(3))  // answered
	table.Touch(&a.Flow, false, at(4)) // the visitor says it again

	for _, step := range []struct {
		at   int
		over string // by then
		next int
	}{
		{31, "", 32},
		{32, "c ", 34}, // 30 s after its only datagram
		{33, "c ", 34},
		{34, "c a ", 123},
		{122, "c a ", 123},
		{123, "c a b ", 0}, // two minutes after the last of either direction
	} {
		next := table.Expire(at(step.at))
		if over.String() != step.over || step.next != 0 && !next.Equal(at(step.next)) || next.IsZero() != (step.next == 0) {
			t.Errorf("after %d s: %q is over, next at %v, want %q, %v", step.at, over.String(), next.Sub(start), step.over, step.next)
		}
	}
	if table.Len() != 0 || len(table.sources) != 0 {
		t.Errorf("%d flows, %d sources are left", table.Len(), len(table.sources))
	}

	over.Reset()
	table.Add(&a.Flow, src, at(200))
	table.Add(&b.Flow, src, at(200))
	table.Touch(&b.Flow, true, at(201))
	if !a.Last().Equal(at(200)) || !b.Last().Equal(at(201)) {
		t.Errorf("the last datagrams came at %v and %v", a.Last(), b.Last())
	}

	// In a hurry silence is short, whoever was answered.
	table.Hurry(time.Second)
	if next := table.Expire(at(201)); over.String() != "a " || !next.Equal(at(202)) {
		t.Errorf("in a hurry %q is over, next at %v", over.String(), next.Sub(start))
	}
	table.Touch(&a.Flow, true, at(202)) // it is over, and its socket may not be closed yet
	if table.Len() != 1 {
		t.Errorf("%d flows, want 1", table.Len())
	}
	table.End()
	table.Remove(&b.Flow)
	if over.String() != "a b " || table.Len() != 0 {
		t.Errorf("at the end %q is over, %d are left", over.String(), table.Len())
	}
}

func TestFlowsMakeRoom(t *testing.T) {
	table := Flows{Limit: 4, PerSource: 2}
	var over strings.Builder
	now := time.Unix(0, 0)
	add := func(name, src string) *namedFlow {
		now = now.Add(time.Second)
		f := newFlow(name, &over)
		table.Add(&f.Flow, netip.MustParseAddr(src), now)
		return f
	}
	expect := func(want string) {
		t.Helper()
		if over.String() != want {
			t.Errorf("%q is over, want %q", over.String(), want)
		}
		over.Reset()
	}
	a1, a2 := add("a1", "192.0.2.1"), add("a2", "192.0.2.1")
	table.Touch(&a1.Flow, true, now)
	add("a3", "192.0.2.1") // a2 has been silent longest
	expect("a2 ")
	if a2.of != nil {
		t.Error("what is over is still in the table")
	}
	add("b1", "192.0.2.2")
	add("c1", "192.0.2.3")
	expect("")
	add("d1", "192.0.2.4") // of all it is a1, but that was answered
	expect("a3 ")
	add("e1", "192.0.2.5")
	add("f1", "192.0.2.6")
	add("g1", "192.0.2.7")
	expect("b1 c1 d1 ")

	// The only flow of a source makes room for the next one of that source.
	one := Flows{Limit: 1, PerSource: 1}
	f, g := newFlow("f", &over), newFlow("g", &over)
	one.Add(&f.Flow, netip.Addr{}, now)
	one.Add(&g.Flow, netip.Addr{}, now)
	expect("f ")
	if one.Len() != 1 || len(one.sources) != 1 {
		t.Errorf("%d flows of %d sources, want one", one.Len(), len(one.sources))
	}
}

// Whatever happens, the lists and the counts agree.
func TestFlowsAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	table := Flows{Limit: 50, PerSource: 8}
	var over strings.Builder
	in := make(map[*namedFlow]bool)
	now := time.Unix(0, 0)
	for range 20000 {
		now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
		if rng.IntN(3) == 0 || len(in) == 0 {
			f := newFlow("", &over)
			in[f] = true
			table.Add(&f.Flow, netip.AddrFrom4([4]byte{byte(rng.IntN(12))}), now)
		} else {
			for f := range in {
				if rng.IntN(20) == 0 {
					table.Remove(&f.Flow)
				} else {
					table.Touch(&f.Flow, rng.IntN(4) == 0, now)
				}
				break
			}
		}
		table.Expire(now)
		for f := range in {
			if f.of == nil {
				delete(in, f)
			}
		}
		if table.Len() != len(in) || len(in) > table.Limit {
			t.Fatalf("%d flows, and %d are in the lists", len(in), table.Len())
		}
		n := 0
		for _, s := range table.sources {
			k := 0
			var last time.Time
			for f := s.flows.first; f != nil; f = f.links[1].after {
				if f.last.Before(last) {
					t.Fatal("the flows of a source are out of order")
				}
				last = f.last
				k++
			}
			if k != s.flows.n || k == 0 || k > table.PerSource {
				t.Fatalf("a source with %d flows, %d of them in its list", s.flows.n, k)
			}
			n += k
		}
		if n != len(in) {
			t.Fatalf("%d flows of sources, want %d", n, len(in))
		}
	}
}
