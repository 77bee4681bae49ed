package acme

import (
	"log/slog"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"go.uber.org/zap"
)

// DNS sets the records of DNS-01 challenges. It has a Provider or a Hook.
type DNS struct {
	// Provider adds and removes them: an RFC2136, or any of libdns.
	Provider certmagic.DNSProvider

	// Hook does the same without having to know the zone.
	Hook *Hook

	// Resolvers, HOST:PORT, are asked which zone a name is in, unless there is a Hook,
	// and whether the record has arrived. nil: the system's for the one, the zone's own
	// servers for the other.
	Resolvers []string

	// Delay is waited before the first look whether it has.
	Delay time.Duration

	// Timeout is how long it may take. 0: two minutes. -1: nobody looks.
	Timeout time.Duration

	// Override is the name whose record is set, for challenges that a CNAME leads
	// elsewhere. "": _acme-challenge before the name.
	Override string
}

func (d *DNS) solver(log *slog.Logger) acmez.Solver {
	if d.Hook != nil {
		return &hooked{d}
	}
	return &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider:        d.Provider,
		TTL:                time.Minute,
		PropagationDelay:   d.Delay,
		PropagationTimeout: d.Timeout,
		Resolvers:          d.Resolvers,
		OverrideDomain:     d.Override,
		Logger:             zap.New(bridge{log}),
	}}
}
