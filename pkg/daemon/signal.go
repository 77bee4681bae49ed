package daemon

import (
	"context"
	"os"
	"os/signal"
	"slices"
)

// Signals returns a context that ends with the first SIGTERM or SIGINT (the caller then drains); the second
// one ends the process at once with ExitFailed. Each SIGHUP calls reload, one at a time, from a goroutine of
// its own. Windows has no SIGHUP; there Ctrl-C and a console close end the context.
//
// Stop must be called; it gives the signals back and returns when reload is not running.
func Signals(ctx context.Context, reload func()) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	c := make(chan os.Signal, 8)
	quit, done := make(chan struct{}), make(chan struct{})
	signal.Notify(c, slices.Concat(stopSignals, reloadSignals)...)
	go watchSignals(c, quit, done, cancel, reload)
	return ctx, func() {
		signal.Stop(c)
		close(quit)
		<-done
		cancel()
	}
}

func watchSignals(c <-chan os.Signal, quit <-chan struct{}, done chan<- struct{}, cancel func(), reload func()) {
	defer close(done)
	stopping := false
	for {
		select {
		case s := <-c:
			switch {
			case slices.Contains(reloadSignals, s):
				if !stopping {
					reload()
				}
			case stopping:
				os.Exit(ExitFailed)
			default:
				stopping = true
				cancel()
			}
		case <-quit:
			return
		}
	}
}
