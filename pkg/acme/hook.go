package acme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"time"

	"github.com/libdns/libdns"
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

// AppendRecords implements libdns.RecordAppender.
func (h *Hook) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, "present", zone, records)
}

// DeleteRecords implements libdns.RecordDeleter.
func (h *Hook) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, "cleanup", zone, records)
}

func (h *Hook) each(ctx context.Context, what, zone string, records []libdns.Record) error {
	for _, rec := range records {
		rr := rec.RR()
		if err := h.call(ctx, what, strings.TrimSuffix(libdns.AbsoluteName(rr.Name, zone), ".")+".", rr.Data); err != nil {
			return err
		}
	}
	return nil
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
