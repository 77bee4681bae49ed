package evloop

import "time"

// sleeper is the poller of a loop without descriptors.
type sleeper struct{ woken chan struct{} }

func newSleeper() *sleeper { return &sleeper{woken: make(chan struct{}, 1)} }

func (s *sleeper) add(int, uint64, bool) error {
	panic("BUG: evloop: portable loop was given a descriptor")
}
func (s *sleeper) remove(int) {}
func (s *sleeper) close()     {}

func (s *sleeper) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

func (s *sleeper) wait(block bool, deadline time.Time, _ []event) (int, error) {
	if !block {
		return 0, nil
	}
	if deadline.IsZero() {
		<-s.woken
		return 0, nil
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-s.woken:
	case <-t.C:
	}
	return 0, nil
}
