package tftp

import (
	"strings"
	"unicode/utf8"
)

// maxName bounds the name of a file, in bytes.
const maxName = 255

// CleanName returns the name of a request without empty elements and those that are ".", and without a slash at either
// end: "boot/x" for "/boot//./x". The error is an *Error with CodeAccess: the name is empty, has more than 255 bytes, is
// not UTF-8, or has "..", a backslash, a control character or a drive letter.
func CleanName(name string) (string, error) {
	refused := func(text string) (string, error) {
		return "", &Error{Code: CodeAccess, Text: text}
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\\' }) {
		return refused("The name has characters that are not allowed.")
	}
	var clean strings.Builder
	for element := range strings.SplitSeq(name, "/") {
		switch element {
		case "", ".":
			continue
		case "..":
			return refused("The name leaves the folder.")
		}
		if clean.Len() > 0 {
			clean.WriteByte('/')
		} else if letter := element[0] | 0x20; len(element) > 1 && element[1] == ':' && 'a' <= letter && letter <= 'z' {
			return refused("The name has a drive.")
		}
		clean.WriteString(element)
	}
	switch {
	case clean.Len() == 0:
		return refused("The name is empty.")
	case clean.Len() > maxName:
		return refused("The name is too long.")
	}
	return clean.String(), nil
}
