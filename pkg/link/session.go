package link

import (
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tunnel"
)

// Session is a tunnel.Session on the loop that owns it: what a turn has given it to send goes at the end of that turn, and
// what is due by time is done.
type Session struct {
	*tunnel.Session

	loop  *evloop.Loop
	timer evloop.Timer
	due   time.Time // when timer fires; zero: it is stopped
	woken bool      // flush comes at the end of this turn

	flushFunc, advanceFunc func() // made once
}

// NewSession returns a session that waits for its first link. cfg.Wake is not for the caller to set.
// On the loop only.
func NewSession(loop *evloop.Loop, cfg tunnel.Config) *Session {
	s := &Session{loop: loop}
	s.flushFunc, s.advanceFunc = s.flush, s.advance
	cfg.Wake = s.wake
	s.Session = tunnel.New(cfg, loop.Now())
	return s
}

// wake has the session flushed at the end of this turn.
func (s *Session) wake() {
	if !s.woken {
		s.woken = true
		s.loop.AfterTurn(s.flushFunc)
	}
}

func (s *Session) flush() {
	s.woken = false
	s.Flush(s.loop.Now())
	s.arm(s.Next())
}

func (s *Session) advance() {
	s.due = time.Time{}
	s.arm(s.Advance(s.loop.Now()))
}

// arm keeps the timer no later than the session needs it. A session that is over needs none.
func (s *Session) arm(next time.Time) {
	if next.IsZero() {
		s.timer.Stop()
		s.due = time.Time{}
	} else if s.due.IsZero() || next.Before(s.due) {
		s.due = next
		s.loop.Arm(&s.timer, next.Sub(s.loop.Now()), s.advanceFunc)
	}
}
