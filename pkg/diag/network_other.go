//go:build !linux

package diag

func routes() ([]Route, error)         { return nil, errNotHere }
func neighbours() ([]Neighbour, error) { return nil, errNotHere }
