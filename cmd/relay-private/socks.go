package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/socks"
)

// socksConfig is [socks].
type socksConfig struct {
	// Allow is what operators of the public relay may reach from here besides the services, with `tunnelctl socks`: HOST:PORT, where HOST is a
	// prefix ("10.0.0.0/8:*"), an address ("10.0.0.5:22", "[fd00::5]:22"), a name ("db.corp.example:5432"), all names below one
	// ("*.corp.example:443") or "*", and PORT is a port, a range ("8000-8999") or "*". Names are looked up here. The default is nothing. This machine
	// itself, link-local addresses and the metadata services of clouds are allowed by their own addresses alone, such as "127.0.0.1:8080".
	// The same holds for TCP and UDP. SIGHUP takes a change up, for new connections.
	Allow daemon.Strings `toml:"allow"`
}

// check returns the rules. Mistakes go to f.
func (c *socksConfig) check(f *daemon.File) *socks.Rules {
	r := new(socks.Rules)
	for i, text := range c.Allow {
		rule, err := socks.ParseRule(text)
		if err != nil {
			at := "socks.allow"
			if len(c.Allow) > 1 {
				at = fmt.Sprintf("socks.allow[%d]", i)
			}
			f.Addf(at, "allow: %v", err)
		}
		r.Allow = append(r.Allow, rule)
	}
	return r
}

// reachable says where operators may go; the rules are those of the configuration of the moment.
type reachable struct{ rules atomic.Pointer[socks.Rules] }

// resolve is private.Relay's Socks.
func (r *reachable) resolve(ctx context.Context, network, address string) ([]netip.AddrPort, error) {
	rules := r.rules.Load()
	if len(rules.Allow) == 0 {
		return nil, relay.NewOperateError(relay.OperateForbidden, "the site lets operators reach its services alone: [socks] of its private.toml says what else")
	}
	addrs, err := rules.Resolve(ctx, address)
	var dns *net.DNSError
	switch {
	case err == nil:
		return addrs, nil
	case errors.Is(err, socks.ErrForbidden):
		return nil, relay.NewOperateError(relay.OperateForbidden, "%s is not among what the site lets operators reach: [socks] of its private.toml says what is", address)
	case errors.As(err, &dns) && dns.IsNotFound:
		return nil, relay.NewOperateError(relay.OperateUnreachable, "%s: the site knows no such name", address)
	case errors.As(err, &dns):
		return nil, relay.NewOperateError(relay.OperateUnreachable, "%s: the site cannot look the name up", address)
	}
	return nil, relay.NewOperateError(relay.OperateUnreachable, "%v", err)
}
