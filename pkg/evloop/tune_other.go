//go:build !linux

package evloop

import "errors"

func tcpInfo(int) (TCPInfo, error) { return TCPInfo{}, errors.ErrUnsupported }

func congestion(int) (string, error) { return "", errors.ErrUnsupported }

func setCongestion(int, string) error { return errors.ErrUnsupported }

func setUnsent(int, int) error { return errors.ErrUnsupported }
