package daemon

// InheritedSockets returns nil: only systemd passes sockets on.
func InheritedSockets() (*Sockets, error) { return nil, nil }
