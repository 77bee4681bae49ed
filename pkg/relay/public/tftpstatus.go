package public

import (
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
)

// TFTPPort is what is known of TFTP in all, in Status.
type TFTPPort struct {
	tftpd.Stats
	Cache tftpd.CacheStats
}

// Causes are the requests that were refused, by cause.
func (t *TFTPPort) Causes() map[string]uint64 {
	r := t.Refused
	return map[string]uint64{
		"malformed": r.Malformed, "limit": r.Limit, "policy": r.Policy, "not-found": r.NotFound, "failed": r.Failed, "displaced": r.Displaced,
	}
}

// TFTPStatus is what is known of a service of files by TFTP, in ServiceStatus.
type TFTPStatus struct {
	Rate          uint64 // bits of files in a second, both ways, on the average of the last few
	Retransmitted uint64 // packets that were sent once more
	Refused       uint64 // requests that were not admitted
	Cached        int64  // bytes of files that are kept
	Hits          uint64 // files that were read and had not to come from the site
}

// tftpTally is what is counted for a service of files. It is part of the tally of its service, and owned by the same loop.
type tftpTally struct {
	visits        *fileVisit // under way, in a list
	retransmitted uint64     // by those that are over
	refused       uint64
	hits          uint64
	meter
	timer evloop.Timer // while there are visits
}

// sampleTime is how often it is looked how far transfers have come.
const sampleTime = time.Second

// begin counts a transfer.
func (c *tftpTally) begin(t *tally, v *fileVisit, l *loop) {
	first := c.visits == nil
	if push(&c.visits, v); first {
		c.tick(t, l)
	}
}

// end is the end of one.
func (c *tftpTally) end(t *tally, v *fileVisit, l *loop) {
	t.measure(v, l.since())
	c.retransmitted += uint64(v.transfer.Stats().Retransmitted)
	if take(&c.visits, v); c.visits == nil {
		c.timer.Stop()
	}
}

func (c *tftpTally) tick(t *tally, l *loop) {
	t.measureAll(l.since())
	l.Arm(&c.timer, sampleTime, func() { c.tick(t, l) })
}

// measureAll counts the bytes of all transfers since the last time.
func (t *tally) measureAll(now int64) {
	for v := t.tftp.visits; v != nil; v = v.after {
		t.measure(v, now)
	}
}

func (t *tally) measure(v *fileVisit, now int64) {
	bytes := v.transfer.Stats().Bytes
	n := uint64(bytes - v.bytes)
	if n > 0 {
		v.moved = now
	}
	v.bytes = bytes
	if v.transfer.Request.Op == tftp.OpWrite {
		t.received += n
	} else {
		t.sent += n
	}
	t.tftp.add(now, n)
}

// fileStatus is the part of Status of a service of files.
func (t *tally) fileStatus(now int64) *TFTPStatus {
	c := &t.tftp
	st := &TFTPStatus{Rate: c.rate(now), Retransmitted: c.retransmitted, Refused: c.refused, Hits: c.hits}
	for v := c.visits; v != nil; v = v.after {
		st.Retransmitted += uint64(v.transfer.Stats().Retransmitted)
	}
	return st
}
