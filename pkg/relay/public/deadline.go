package public

import (
	"time"

	"culvert.dev/pkg/evloop"
)

// deadline is until when its owner may stay in a phase. Most deadlines move on before they are reached, so
// the timer is left alone then, and armed for the rest when it fires.
type deadline struct {
	timer evloop.Timer
	at    int64 // in the loop's time
	fires int64 // when timer does; 0: it is stopped
}

// timed owns a deadline. onTimer asks reached first.
type timed interface{ onTimer() }

// set gives the owner, who is on l, d of time from now.
func (t *deadline) set(l *loop, d time.Duration, owner timed) {
	t.at = l.since() + int64(d)
	if t.fires == 0 || t.fires > t.at {
		t.arm(l, d, owner)
	}
}

func (t *deadline) arm(l *loop, d time.Duration, owner timed) {
	t.fires = l.since() + int64(d)
	l.Arm(&t.timer, d, owner.onTimer)
}

func (t *deadline) stop() {
	t.timer.Stop()
	t.fires = 0
}

// reached reports, when the timer has fired, whether there is no time left.
func (t *deadline) reached(l *loop, owner timed) bool {
	t.fires = 0
	if left := t.at - l.since(); left > 0 {
		t.arm(l, time.Duration(left), owner)
		return false
	}
	return true
}
