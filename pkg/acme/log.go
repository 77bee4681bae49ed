package acme

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// bridge has what certmagic logs in slog. Certificates that were obtained or could not
// be are logged by the Manager, so the steps are for debugging, and of the rest only
// what went wrong is for operators.
type bridge struct {
	log *slog.Logger
}

func (b bridge) level(e zapcore.Entry) slog.Level {
	if e.Level < zapcore.WarnLevel {
		return slog.LevelDebug
	}
	switch e.LoggerName {
	case "obtain", "renew":
		return slog.LevelDebug
	}
	switch e.Message {
	case "certificate is in configured renewal window based on expiration date",
		"certificate is in emergency renewal window; superseding ARI",
		"certificate is in emergency renewal window; expiration imminent":
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func (b bridge) Enabled(l zapcore.Level) bool {
	return b.log.Enabled(context.Background(), b.level(zapcore.Entry{Level: l}))
}

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{b.log.With(args(fields)...)}
}

func (b bridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.log.Enabled(context.Background(), b.level(e)) {
		return c.AddCore(e, b)
	}
	return c
}

func (b bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	b.log.Log(context.Background(), b.level(e), "certificates: "+e.Message, args(fields)...)
	return nil
}

func (b bridge) Sync() error { return nil }

// args are the fields of zap as slog has them.
func args(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	list := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			list = append(list, f.Key, v)
		}
	}
	return list
}

// quiet has what the protocol's implementation logs for debugging: its errors are
// returned too.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level, r.Message = slog.LevelDebug, "certificates: "+r.Message
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(n string) slog.Handler      { return quiet{q.Handler.WithGroup(n)} }
