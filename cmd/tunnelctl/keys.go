package main

import (
	"unicode"
	"unicode/utf8"
)

// key is a key of a terminal: a character, or one of these.
type key rune

const (
	keyUp key = -1 - iota
	keyDown
	keyRight
	keyLeft
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
	keyEscape
	keyUnknown // some other one

	keyInterrupt key = 3 // Ctrl-C
	keyTab       key = 9
	keyRedraw    key = 12 // Ctrl-L
	keyEnter     key = 13
	keySuspend   key = 26 // Ctrl-Z
	keyBackspace key = 127
)

// sequences are what terminals send for keys that are no characters, behind the ESC.
var sequences = map[string]key{
	"[A": keyUp, "[B": keyDown, "[C": keyRight, "[D": keyLeft, "OA": keyUp, "OB": keyDown, "OC": keyRight, "OD": keyLeft,
	"[5~": keyPageUp, "[6~": keyPageDown, "[H": keyHome, "[F": keyEnd, "OH": keyHome, "OF": keyEnd,
	"[1~": keyHome, "[4~": keyEnd, "[7~": keyHome, "[8~": keyEnd, "[Z": keyTab,
}

// parseKeys returns the keys in what a terminal has sent in one go. An ESC at its end is the key of that name: those that begin a
// sequence come together with the rest of it.
func parseKeys(b []byte) (keys []key) {
	for len(b) > 0 {
		k, n := parseKey(b)
		keys = append(keys, k)
		b = b[n:]
	}
	return keys
}

func parseKey(b []byte) (k key, n int) {
	switch c := b[0]; {
	case c == 27 && len(b) > 1 && (b[1] == '[' || b[1] == 'O'):
		// CSI: parameters, then a letter or ~. SS3: one letter.
		n = 2
		for b[1] == '[' && n < len(b) && b[n] >= 0x20 && b[n] < 0x40 {
			n++
		}
		n = min(n+1, len(b))
		if k, known := sequences[string(b[1:n])]; known {
			return k, n
		}
		return keyUnknown, n
	case c == 27:
		return keyEscape, 1
	case c == '\n':
		return keyEnter, 1
	case c == 8:
		return keyBackspace, 1
	case c < ' ' || c == 127:
		return key(c), 1
	}
	r, n := utf8.DecodeRune(b)
	if r == utf8.RuneError || !unicode.IsPrint(r) {
		return keyUnknown, max(n, 1)
	}
	return key(r), n
}
