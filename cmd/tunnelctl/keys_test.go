package main

import (
	"slices"
	"testing"
)

func TestKeys(t *testing.T) {
	for in, want := range map[string][]key{
		"q":                    {'q'},
		"\x1b[A\x1b[B\x1b[6~j": {keyUp, keyDown, keyPageDown, 'j'},
		"\x1bOA\x1b[1;5C":      {keyUp, keyUnknown},
		"\x1b":                 {keyEscape},
		"\x1bq":                {keyEscape, 'q'},
		"\x1b[":                {keyUnknown},
		"\x1b[200":             {keyUnknown},
		"ä€\r\n\t\x03":         {'ä', '€', keyEnter, keyEnter, keyTab, keyInterrupt},
		"\x08\x7f":             {keyBackspace, keyBackspace},
		"\xff\u202e":           {keyUnknown, keyUnknown},
	} {
		if got := parseKeys([]byte(in)); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

// Whatever a terminal sends is keys, one or more bytes each.
func FuzzKeys(f *testing.F) {
	f.Add([]byte("q\x1b[A\x1bO\x1b[1;5C\xc3\xa4"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if keys := parseKeys(b); len(keys) > len(b) || len(b) > 0 && len(keys) == 0 {
			t.Errorf("%d keys of %d bytes", len(keys), len(b))
		}
		m := newTop(80, 24, false)
		m.see(someFigures(3, 3))
		for _, k := range parseKeys(b) {
			if m.press(k) {
				return
			}
			checkFrame(t, m)
		}
	})
}
