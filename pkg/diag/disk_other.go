//go:build !linux && !darwin && !freebsd

package diag

import "errors"

func disk(string) (Disk, error) { return Disk{}, errors.ErrUnsupported }
