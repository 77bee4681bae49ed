package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"culvert.dev/pkg/accesslog"
	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay/public"
)

// options are the flags.
type options struct {
	config              string
	check               bool
	logLevel, logFormat string
}

// grace is how long a relay that has just started keeps requests for sites that are on their way back to it.
const grace = 5 * time.Second

// run runs the relay until ctx ends or it is told to stop.
func run(ctx context.Context, o options, stdout, stderr io.Writer) error {
	if o.config == "" {
		return daemon.UsageError("--config FILE is needed")
	}
	s, err := load(o.config)
	if err != nil {
		return err
	}
	if o.check {
		fmt.Fprintln(stdout, "ok")
		return nil
	}
	log, err := daemon.NewLogger(stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	logs := new(daemon.LogRing)
	log = slog.New(logs.Handler(log.Handler()))
	sockets, err := daemon.InheritedSockets()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.state, 0o700); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	unlock, err := daemon.LockFolder(s.state)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer unlock()
	st, err := openState(s, log)
	if err != nil {
		return err
	}
	defer st.closeACME()
	warn := newAlerts(s, st, log)
	access, err := openAccessLog(s.AccessLog, stdout, log, warn)
	if err != nil {
		return err
	}
	if access != nil {
		defer access.close()
	}
	audit, err := openAudit(s.state, log)
	if err != nil {
		return err
	}
	defer audit.close()
	ctx, drainNow := context.WithCancel(ctx)
	defer drainNow()
	core, err := evloop.New(evloop.Config{OnSlowTurn: daemon.SlowTurns(log)})
	if err != nil {
		return err
	}
	defer core.Close()

	visitors := maxVisitors(s.Limits.Visitors, daemon.MaxFiles())
	if visitors < s.Limits.Visitors {
		log.Info("fewer visitors than [limits] allows: each takes a file descriptor; raise LimitNOFILE, or ulimit -n", "visitors", visitors)
	}
	r := &public.Relay{
		Core:    core,
		Proxies: s.proxies,
		Domain:  s.Domain,
		TLS: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			CipherSuites:   cipherSuites,
			GetCertificate: st.certificateFor,
		},
		HTTPS:                s.Listen.HTTPS,
		HTTP:                 s.Listen.HTTP,
		QUIC:                 s.Listen.QUIC,
		RTSP:                 s.Listen.RTSP,
		RTSPS:                s.Listen.RTSPS,
		RTP:                  s.Listen.RTP,
		TFTP:                 s.Listen.TFTP,
		TFTPPorts:            s.Listen.TFTPPorts,
		TFTPTransfers:        s.Limits.TFTPTransfers,
		TFTPPerAddress:       s.Limits.TFTPTransfersPerAddress,
		TFTPCache:            s.Limits.TFTPCache,
		TFTPBlock:            s.Limits.TFTPBlock,
		QUICSecret:           st.quic,
		Inherited:            sockets.Files,
		Grace:                grace,
		MaxVisitors:          visitors,
		MaxPerAddress:        s.Limits.VisitorsPerAddress,
		HandshakesPerAddress: s.Limits.HandshakesPerAddress,
		MaxFlows:             s.Limits.Flows,
		MaxFlowsPerAddress:   s.Limits.FlowsPerAddress,
		MaxStreams:           s.Limits.StreamsPerSite,
		Budget:               s.Limits.SessionMemory,
		Software:             "culvert " + version,
		Join:                 st.join,
		Operator:             st.operators.Verify,
		FollowOperator:       st.operators.Follow,
		Log:                  log,
	}
	r.HideRequests = !s.Operators.Requests
	if !s.Operators.Inspect {
		r.InspectMemory = -1
	}
	if access != nil {
		r.AccessLog, r.AccessQuery, r.AccessAgent = access.Write, s.AccessLog.Query, s.AccessLog.Agent
	}
	r.Published, r.Challenge, r.Challenging = st.publishedHosts, st.challenge, st.challenging
	st.exposed.sessions = func() map[string]bool { return withSessions(r) }
	st.changed = func() { r.Reload(st.sites()) }
	warn.relay = r
	r.Reload(st.sites())
	at, err := newAdminServer(sockets, s.Listen.Admin, log)
	if err != nil {
		return fmt.Errorf("listener admin %q: %w", s.Listen.Admin, err)
	}
	if s.Operators.Domain {
		r.Own = at.take
	}
	if err := r.Listen(); err != nil {
		at.close()
		return err
	}
	ready := []any{"domain", s.Domain}
	for _, l := range r.Listeners() {
		ready = append(ready, l.Name, l.Addr.String())
		if l.Name == "https" {
			st.address = l.Addr
		}
	}
	turning := &daemon.Probe{N: core.NumLoops(), Post: func(i int, f func()) bool { return core.Loop(i).Post(f) }}
	adminAddress := ""
	if at.addr != nil || s.Operators.Domain {
		api := (&door{
			state: st, relay: r, alerts: warn, turning: turning, access: access, audit: audit.Audit, drain: time.Duration(s.DrainTimeout),
			stop: drainNow, file: o.config, settings: s, log: log,
		}).handler(at.addr)
		inside := &insight{relay: r, known: st.known, logs: logs}
		inside.serve(api)
		defer inside.start()()
		at.serve(api)
	}
	defer at.close()
	if at.addr != nil {
		adminAddress = at.addr.String()
		ready = append(ready, "admin", adminAddress)
	}

	if unused := sockets.Unused(); unused != nil {
		log.Info("inherited sockets that are no listener: they wait for services to be published there", "sockets", unused)
	}

	running, stop := daemon.Signals(ctx, func() {
		if access != nil {
			access.Reopen()
		}
		audit.Reopen()
		reload(o.config, s, st, warn, log)
	})
	defer stop()
	go daemon.Trim(running)
	alive, end := context.WithCancel(context.Background()) // and so while it drains
	defer end()
	go daemon.Watchdog(alive, turning)
	go daemon.Report(alive, func() string { return summary(alive, r) })
	watched := make(chan struct{})
	go func() { defer close(watched); warn.run(running) }()
	defer func() { <-watched }()
	saved, swept := make(chan struct{}), make(chan struct{})
	go st.saveUses(alive, saved)
	go st.exposed.sweep(alive, swept)
	defer func() { end(); <-saved; <-swept }()
	daemon.Ready(log, ready...)
	st.sayNext(adminAddress)

	<-running.Done()
	timeout := time.Duration(s.DrainTimeout)
	log.Info("stopping: visitors may finish", "timeout", timeout)
	daemon.Stopping(timeout)
	drain, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := r.Drain(drain); errors.Is(err, context.DeadlineExceeded) {
		log.Warn("drain timeout: visitors are cut")
	}
	return nil
}

// accessLog is the access log, and who hears of its troubles.
type accessLog struct {
	*accesslog.Log
	log *slog.Logger
}

// openAccessLog opens what the configuration says, nil if that is nothing.
func openAccessLog(c accessConfig, stdout io.Writer, log *slog.Logger, warn *alerts) (*accessLog, error) {
	config := accesslog.Config{
		Path: c.File, MaxSize: c.MaxSize, Keep: c.Keep,
		OnTrouble: func(dropped uint64, err error) {
			warn.accessLog(c.File, err)
			if err == nil {
				log.Info("the access log is written again", "dropped", dropped)
				return
			}
			log.Error("access log", "dropped", dropped, "err", err)
		},
	}
	switch c.File {
	case "":
		return nil, nil
	case stdoutLog:
		config.Out = stdout
	}
	l, err := accesslog.Open(config)
	if err != nil {
		return nil, err
	}
	return &accessLog{l, log}, nil
}

// close writes what there is. The event loops have ended.
func (a *accessLog) close() {
	if err := a.Close(); err != nil {
		a.log.Error("access log", "err", err)
	}
}

// auditLog is the audit log, and who hears of its troubles.
type auditLog struct {
	*admin.Audit
	log *slog.Logger
}

// How large a file of the audit log may become, and how many older ones are kept.
const (
	auditSize = 10 << 20
	auditKeep = 10
)

// openAudit opens the one of a state folder.
func openAudit(dir string, log *slog.Logger) (*auditLog, error) {
	a, err := admin.OpenAudit(accesslog.Config{
		Path: filepath.Join(dir, "audit.log"), MaxSize: auditSize, Keep: auditKeep,
		OnTrouble: func(dropped uint64, err error) {
			if err == nil {
				log.Info("the audit log is written again", "dropped", dropped)
				return
			}
			log.Error("audit log", "dropped", dropped, "err", err)
		},
	})
	if err != nil {
		return nil, err
	}
	return &auditLog{a, log}, nil
}

func (a *auditLog) close() {
	if err := a.Close(); err != nil {
		a.log.Error("audit log", "err", err)
	}
}

// summary is the service manager's line about the relay.
func summary(ctx context.Context, r *public.Relay) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st := r.Status(ctx)
	linked, services := 0, 0
	for _, s := range st.Sessions {
		if s.Lost.IsZero() {
			linked++
		}
		services += len(s.Services)
	}
	text := fmt.Sprintf("%d sessions, %d of them linked; %d services; %d visitors", len(st.Sessions), linked, services, st.Visitors)
	if st.Draining {
		return "draining; " + text
	}
	return text
}

// maxVisitors bounds the visitors by the files that the process may have open, 0 meaning any number, so that
// some are left for links, and for telling visitors that there are too many.
func maxVisitors(wanted, files int) int {
	if files == 0 {
		return wanted
	}
	return max(1, min(wanted, files-files/8-64))
}

// reload takes the sites and the certificate of the file as it is now. A bad file changes nothing.
func reload(file string, running *settings, st *state, warn *alerts, log *slog.Logger) {
	daemon.Reloading()
	defer daemon.Reloaded()
	s, err := load(file)
	if err == nil {
		err = st.operators.ReadAdminToken()
	}
	if err == nil {
		err = st.apply(s)
	}
	if err != nil {
		log.Error("reload: the old configuration stays", "err", err)
		return
	}
	st.changed()
	warn.apply(s)
	if parts := s.needRestart(running); parts != nil {
		log.Warn("reload: some changes need a restart", "parts", parts)
	}
	log.Info("reloaded", "sites", len(st.sites()))
}

// cipherSuites are those of TLS 1.2 that are taken: authenticated encryption, which HTTP/2 demands (rfc9113#section-9.2.2),
// with forward secrecy. Those of TLS 1.3 are as they should be.
var cipherSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305,
}
