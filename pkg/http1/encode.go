package http1

import (
	"strconv"
	"time"
)

// Continue is the interim answer to Expect: 100-continue.
const Continue = "HTTP/1.1 100 Continue\r\n\r\n"

// AppendChunk appends payload as one chunk. An empty payload appends nothing, since an empty chunk
// would end the body.
func AppendChunk(dst, payload []byte) []byte {
	if len(payload) == 0 {
		return dst
	}
	dst = AppendChunkSize(dst, len(payload))
	dst = append(dst, payload...)
	return append(dst, "\r\n"...)
}

// AppendChunkSize appends the line before a chunk of n > 0 bytes, for a payload that is written from
// where it is. A CRLF goes behind it.
func AppendChunkSize(dst []byte, n int) []byte {
	dst = strconv.AppendUint(dst, uint64(n), 16)
	return append(dst, "\r\n"...)
}

// AppendLastChunk appends the end of a chunked body with its trailers, if any.
func AppendLastChunk(dst []byte, trailers []Field) []byte {
	dst = append(dst, "0\r\n"...)
	for _, f := range trailers {
		dst = appendField(dst, f)
	}
	return append(dst, "\r\n"...)
}

// appendField appends one field line. Name and value must not come from a peer unless they were parsed
// by this package.
func appendField(dst []byte, f Field) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, ": "...)
	dst = append(dst, f.Value...)
	return append(dst, "\r\n"...)
}

// AppendStatusLine appends "HTTP/1.1 404 Not Found" and CRLF.
func AppendStatusLine(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, statusText(status)...)
	return append(dst, "\r\n"...)
}

// AppendError appends a whole answer with text and a newline as its plain-text body, which is left
// out, but announced, when head is set (the request was HEAD). Without keepAlive it says Connection:
// close. fields go into the head.
func AppendError(dst []byte, now time.Time, status int, text string, keepAlive, head bool, fields ...Field) []byte {
	dst = AppendStatusLine(dst, status)
	dst = append(dst, "Date: "...)
	dst = AppendDate(dst, now)
	dst = append(dst, "\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nContent-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(text)+1), 10)
	dst = append(dst, "\r\n"...)
	if !keepAlive {
		dst = append(dst, "Connection: close\r\n"...)
	}
	for _, f := range fields {
		dst = appendField(dst, f)
	}
	dst = append(dst, "\r\n"...)
	if !head {
		dst = append(dst, text...)
		dst = append(dst, '\n')
	}
	return dst
}

// AppendDate appends now as an IMF-fixdate (rfc9110#section-5.6.7), the value of Date: 29 bytes.
func AppendDate(dst []byte, now time.Time) []byte {
	now = now.UTC()
	year, month, day := now.Date()
	hour, minute, second := now.Clock()
	w, m := 3*int(now.Weekday()), 3*int(month-1)
	dst = append(dst, "SunMonTueWedThuFriSat"[w:w+3]...)
	dst = append(dst, ", "...)
	dst = append2(dst, day)
	dst = append(dst, ' ')
	dst = append(dst, "JanFebMarAprMayJunJulAugSepOctNovDec"[m:m+3]...)
	dst = append(dst, ' ')
	dst = append2(dst, year/100)
	dst = append2(dst, year%100)
	dst = append(dst, ' ')
	dst = append2(dst, hour)
	dst = append(dst, ':')
	dst = append2(dst, minute)
	dst = append(dst, ':')
	dst = append2(dst, second)
	return append(dst, " GMT"...)
}

func append2(dst []byte, n int) []byte {
	return append(dst, byte('0'+n/10%10), byte('0'+n%10))
}

// statusText returns the reason phrase of the statuses that this package's users answer with, and of others that are
// common: HTTP/2 has none, and some clients of HTTP/1.1 want one.
func statusText(status int) string {
	switch status {
	case 100:
		return "Continue"
	case 101:
		return "Switching Protocols"
	case 200:
		return "OK"
	case 201:
		return "Created"
	case 202:
		return "Accepted"
	case 204:
		return "No Content"
	case 206:
		return "Partial Content"
	case 301:
		return "Moved Permanently"
	case 302:
		return "Found"
	case 303:
		return "See Other"
	case 304:
		return "Not Modified"
	case 307:
		return "Temporary Redirect"
	case 308:
		return "Permanent Redirect"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 408:
		return "Request Timeout"
	case 409:
		return "Conflict"
	case 410:
		return "Gone"
	case 411:
		return "Length Required"
	case 413:
		return "Content Too Large"
	case 414:
		return "URI Too Long"
	case 415:
		return "Unsupported Media Type"
	case 416:
		return "Range Not Satisfiable"
	case 417:
		return "Expectation Failed"
	case 421:
		return "Misdirected Request"
	case 422:
		return "Unprocessable Content"
	case 426:
		return "Upgrade Required"
	case 429:
		return "Too Many Requests"
	case 431:
		return "Request Header Fields Too Large"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Gateway Timeout"
	case 505:
		return "HTTP Version Not Supported"
	}
	return "" // rfc9112#section-4: the reason may be empty
}
