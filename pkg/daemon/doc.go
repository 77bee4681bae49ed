// Package daemon is what a long-running command does around its work: it reads a strict configuration file,
// makes a logger, takes sockets from the service manager and tells it of readiness and life, waits for signals, locks
// its folder and chooses an exit code. It knows nothing of what the command is for.
//
//	func run(ctx context.Context) error {
//		var c config
//		if err := daemon.ReadFile("public.toml", &c, c.check); err != nil {
//			return err // every mistake, with its line and column; the exit code is 2
//		}
//		ctx, stop := daemon.Signals(ctx, reload)
//		defer stop()
//		...
//		go daemon.Watchdog(ctx, &daemon.Probe{N: loops, Post: post})
//		daemon.Ready(log, "https", addr)
//		<-ctx.Done() // SIGTERM
//		daemon.Stopping(drainTimeout)
//		return drain()
//	}
package daemon
