package tunnel

import "time"

// Config has what a Session needs to know. The zero value works.
type Config struct {
	// Client is set on the private relay's side. It opens odd stream ids, the
	// other side even ones.
	Client bool

	// MaxStreams bounds the open streams, both directions together. A stream
	// that the peer opens beyond it is reset with CodeOverload. 0: 131072.
	MaxStreams int

	// Window is what a peer may send on a new stream before this side has
	// consumed any of it, in bytes. It doubles up to MaxWindow while a stream
	// uses it up within two round trips. 0: 64 KiB, which is also the least,
	// and 16 MiB.
	Window, MaxWindow int

	// Budget bounds the memory of the session's streams, in bytes: what was
	// received and is not consumed, and what was written and is not
	// acknowledged. When half of it is in use, streams that hold memory and have moved
	// nothing for long are reset with CodeMemory, see Stream.Charge, the sooner the less is
	// left; beyond it so is one that has to keep more than a little of what it receives.
	// Stream.HighMark shrinks before that. What writers have in
	// their hands when it is 0 comes on top; at twice the budget Open fails. 0: 256 MiB.
	Budget int

	// ResumeTimeout is how long the streams wait for a link. 0: 60 s.
	ResumeTimeout time.Duration

	// PingInterval is how long nothing may be received on a link before a ping is
	// sent; when nothing comes for another PingTimeout the link is given up.
	// 0: 3 s and 7 s.
	PingInterval, PingTimeout time.Duration

	// Wake is called, once until the next Flush, when there is something to
	// flush or Next is earlier than it was. It must not call Flush itself. If
	// nil, the owner flushes after whatever it does.
	Wake func()

	// OnSuspect is called when a link has gone quiet while an answer is due, and the
	// streams have left it for another one: its owner may dial one of the same role at
	// once. If nil, it is not called.
	OnSuspect func(l Link)

	// Accept is called when the peer opened a stream. It must call SetHandler or
	// Reset before it returns. header is lent. If nil, streams are refused.
	Accept func(st *Stream, header []byte)

	// OnGoAway is called once, when the peer has called GoAway: Open fails from now
	// on, and the session ends when the streams have. If nil, it is not called.
	OnGoAway func()

	// OnClose is called once, when the session is over, after the OnClose of
	// every stream. nil is the end of a GoAway. If nil, it is not called.
	OnClose func(err error)
}

const (
	// Headroom is the space at the start of what Link.Send gets which is the link's own.
	Headroom = 16

	// MaxDatagram is the largest datagram: what UDP over IPv4 carries.
	MaxDatagram = 65507

	// MaxHeader is the largest stream header that Open takes.
	MaxHeader = 1024

	// MaxLinks bounds the links of a session. One more supersedes the oldest.
	MaxLinks = 16

	// batchSize is the largest batch, Headroom included: four full TLS records,
	// so that one batch is one write(2) without a short record at its end.
	batchSize = 64 << 10

	// quantum is what a stream may send in one round of the scheduler.
	quantum = 16 << 10

	// highMark and lowMark are about two and one half batches.
	highMark = 128 << 10

	// maxUnused is how much a handler may leave unused without being paused.
	maxUnused = 64 << 10

	// maxAckLag bounds what is received and not acknowledged. It keeps the
	// sender's replay chunks few, and hot in its cache.
	maxAckLag = 256 << 10

	// lazyAck is how long an acknowledgement may wait for company.
	lazyAck = 20 * time.Millisecond

	// defaultRTT stands for the round trip until a ping has measured it, and
	// minRTT for any shorter one, so that windows on fast paths grow eagerly.
	defaultRTT = 100 * time.Millisecond
	minRTT     = 20 * time.Millisecond

	// rttInterval is how often the round trip of a busy link is measured.
	rttInterval = 30 * time.Second

	// maxTombs and maxAnswers bound, beyond Config.MaxStreams, the resets that
	// wait for the peer, and the answers that wait for a link.
	maxTombs, maxAnswers = 64 << 10, 64 << 10

	// drainTimeout is how long a link that is being drained may stay.
	drainTimeout = 5 * time.Second

	// A peer may change the role of a link every roleInterval, and roleBurst times at
	// once.
	roleInterval, roleBurst = time.Second, 16

	// maxDatagrams bounds the datagrams that wait for a link, in bytes.
	maxDatagrams = 512 << 10

	// trimInterval is how often unused buffers are given back.
	trimInterval = 5 * time.Second
)

func (c *Config) setDefaults() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.MaxStreams, 131072)
	def(&c.Window, 64<<10)
	def(&c.MaxWindow, 16<<20)
	def(&c.Budget, 256<<20)
	c.Window = min(max(c.Window, initialWindow), 1<<30)
	c.MaxWindow = min(max(c.MaxWindow, c.Window), 1<<30)
	if c.ResumeTimeout <= 0 {
		c.ResumeTimeout = 60 * time.Second
	}
	if c.PingInterval <= 0 {
		c.PingInterval = 3 * time.Second
	}
	if c.PingTimeout <= 0 {
		c.PingTimeout = 7 * time.Second
	}
}
