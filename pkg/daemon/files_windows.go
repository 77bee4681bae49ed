package daemon

// MaxFiles returns how many files the process may have open, sockets included. 0: as many as it likes.
func MaxFiles() int { return 0 }
