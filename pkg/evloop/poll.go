package evloop

// Each system's poll file defines
//
//	const havePoller bool
//	func newPoller() (poller, error)
//
// and, where havePoller is true, a poller with these promises, plus the descriptor functions that sock_fd.go names:
//
//   - add(fd, token, writes) registers fd once, edge-triggered, for reading, and for writing if that is to be waited for. What is
//     possible already is reported by the next wait.
//   - remove(fd) ends that. Events that wait has not returned yet may still come; their token is stale by then.
//   - wait(block, deadline, events) fills events. It does not block if block is false; otherwise it returns at an
//     event, at wake, or at deadline (zero: never). It may return 0 early.
//   - wake makes the current or the next blocking wait return. It may be called from any goroutine.
//   - close frees the poller; wake may still be called, without effect.
//
// newSleeper is the poller of the portable backend: it has no descriptors, everything arrives through Post.
