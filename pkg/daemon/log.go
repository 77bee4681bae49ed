package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
)

// NewLogger returns a logger for one line an event.
//
// The format is "text", "json" or "auto" (text when w is a terminal, else JSON); the level is "debug",
// "info", "warn" or "error".
func NewLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, UsageError(fmt.Sprintf("log level %q is none of debug, info, warn, error", level))
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	case "auto":
		if IsTerminal(w) {
			return slog.New(slog.NewTextHandler(w, options)), nil
		}
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, UsageError(fmt.Sprintf("log format %q is none of auto, text, json", format))
}

// IsTerminal says whether w is one. It takes any character device for a terminal; the others, such as /dev/null, do not mind.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
