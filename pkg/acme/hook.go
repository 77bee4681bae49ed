package acme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"
)

// Hook changes records by a program of the operator's, which is called
//
//	PROGRAM present _acme-challenge.app.example.com. VALUE
//	PROGRAM cleanup _acme-challenge.app.example.com. VALUE
//
// and has the same in its environment, with the names that certbot's hooks know:
// CERTBOT_DOMAIN (app.example.com) and CERTBOT_VALIDATION. It has done it when it ends
// with status 0.
type Hook struct {
	// Program is the path.
	Program string

	// Timeout bounds a call. 0: two minutes.
	Timeout time.Duration

	// Env is the environment of the program, as exec.Cmd has it.
	Env []string

	// Log hears what the program says on its standard error. If nil, nobody does.
	Log *slog.Logger
}

// maxSaid bounds what is kept of what a hook says.
const maxSaid = 4 << 10

// hooked solves DNS-01 challenges by a Hook.
type hooked struct{ *DNS }

// name is that of the record.
func (d *hooked) name(c acme.Challenge) string {
	if d.Override != "" {
		return dns.Fqdn(d.Override)
	}
	return dns.Fqdn(c.DNS01TXTRecordName())
}

// Present implements acmez.Solver.
func (d *hooked) Present(ctx context.Context, c acme.Challenge) error {
	return d.Hook.call(ctx, "present", d.name(c), c.DNS01KeyAuthorization())
}

// CleanUp implements acmez.Solver.
func (d *hooked) CleanUp(ctx context.Context, c acme.Challenge) error {
	return d.Hook.call(ctx, "cleanup", d.name(c), c.DNS01KeyAuthorization())
}

// Wait implements acmez.Waiter: it returns when every resolver, or else every server
// of the zone, has the record. If the zone is not known nobody is asked.
func (d *hooked) Wait(ctx context.Context, c acme.Challenge) error {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	if err := pause(ctx, d.Delay); err != nil || timeout < 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	name, value := d.name(c), c.DNS01KeyAuthorization()
	servers := d.Resolvers
	if servers == nil {
		servers = zoneServers(ctx, name)
	}
	for _, server := range servers {
		for !hasTXT(ctx, server, name, value) {
			if pause(ctx, 2*time.Second) != nil {
				return fmt.Errorf("the record %s has not arrived at %s in %v", name, server, timeout)
			}
		}
	}
	return nil
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// zoneServers are the servers of the zone that name is in, as the system knows them.
func zoneServers(ctx context.Context, name string) (servers []string) {
	for _, zone, ok := strings.Cut(name, "."); ok && zone != "" && servers == nil; _, zone, ok = strings.Cut(zone, ".") {
		list, _ := net.DefaultResolver.LookupNS(ctx, zone)
		for _, ns := range list {
			servers = append(servers, net.JoinHostPort(ns.Host, "53"))
		}
	}
	return servers
}

// hasTXT asks a server for a record.
func hasTXT(ctx context.Context, server, name, value string) bool {
	m := new(dns.Msg).SetQuestion(name, dns.TypeTXT)
	m.SetEdns0(1232, false)
	client := &dns.Client{Timeout: dnsTime}
	answer, _, err := client.ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		client.Net = "tcp"
		answer, _, err = client.ExchangeContext(ctx, m, server)
	}
	return err == nil && slices.ContainsFunc(answer.Answer, func(rr dns.RR) bool {
		txt, ok := rr.(*dns.TXT)
		return ok && strings.Join(txt.Txt, "") == value
	})
}

func (h *Hook) call(ctx context.Context, what, fqdn, value string) error {
	timeout := h.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Program, what, fqdn, value)
	cmd.Env = append(append([]string{}, h.Env...),
		"CERTBOT_DOMAIN="+strings.TrimSuffix(strings.TrimPrefix(fqdn, "_acme-challenge."), "."), "CERTBOT_VALIDATION="+value)
	said := &tail{}
	cmd.Stderr = said
	cmd.WaitDelay = time.Second // for a child that keeps standard error open
	err := cmd.Run()
	text := strings.TrimSpace(said.String())
	if h.Log != nil && text != "" {
		h.Log.Info("certificates: the DNS hook says", "program", h.Program, "what", what, "name", fqdn, "stderr", text)
	}
	if errors.Is(err, exec.ErrWaitDelay) { // it has ended well, and left somebody who holds its standard error
		err = nil
	}
	state := cmd.ProcessState
	switch {
	case ctx.Err() == context.DeadlineExceeded && (state == nil || !state.Exited()):
		return fmt.Errorf("the DNS hook %s %s has not ended in %v", h.Program, what, timeout)
	case err != nil && text != "":
		return fmt.Errorf("the DNS hook %s %s: %w: %s", h.Program, what, err, lastLine(text))
	case err != nil:
		return fmt.Errorf("the DNS hook %s %s: %w", h.Program, what, err)
	}
	return nil
}

func lastLine(s string) string {
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// tail keeps the end of what is written.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.b.Write(p)
	if n := t.b.Len() - maxSaid; n > 0 {
		t.b.Next(n)
	}
	return len(p), nil
}

func (t *tail) String() string { return t.b.String() }
