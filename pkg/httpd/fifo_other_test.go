//go:build !unix

package httpd

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
