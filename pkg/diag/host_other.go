//go:build !linux

package diag

// fill adds nothing: what these systems tell needs their own calls.
func (h *Host) fill() {}
