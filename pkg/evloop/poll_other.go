//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly

package evloop

import "errors"

const havePoller = false

func newPoller() (poller, error) { return nil, errors.ErrUnsupported }
