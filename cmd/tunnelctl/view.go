package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"golang.org/x/text/width"
)

// look holds the flags that say how a command prints.
type look struct {
	json  bool // --json: the API's own JSON, for programs
	plain bool // --plain: nothing is coloured, cut, aligned or redrawn
}

// view is where a command prints, and how.
type view struct {
	out, errs io.Writer
	look
	width int  // columns of the terminal; 0: there is none, and nothing is cut
	color bool // states are coloured
}

// view returns that of a command.
func (l look) view(cmd *cobra.Command, env func(string) string) *view {
	v := &view{out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), look: l}
	if f, ok := v.out.(*os.File); ok && !l.plain && !l.json && term.IsTerminal(int(f.Fd())) {
		v.width, _, _ = term.GetSize(int(f.Fd()))
		v.color = env("NO_COLOR") == "" && env("TERM") != "dumb"
	}
	return v
}

// print prints a value of the API as JSON, or else as text makes it.
func (v *view) print(value any, text func()) error {
	if !v.json {
		text()
		return nil
	}
	return v.encode(value, "  ")
}

// line prints a value that is one of many: as one line of JSON, or else as text makes it.
func (v *view) line(value any, text func()) error {
	if !v.json {
		text()
		return nil
	}
	return v.encode(value, "")
}

// encode prints a value as JSON.
func (v *view) encode(value any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		return err
	}
	_, err := v.out.Write(escaped(b.Bytes()))
	return err
}

// escaped escapes in a JSON text what printable removes: JSON does so itself with characters below the space alone, and terminals
// obey U+009B as they do ESC [.
func escaped(text []byte) []byte {
	var b []byte
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r < 0x7f || unicode.IsPrint(r):
			b = append(b, text[i:i+n]...)
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				b = fmt.Appendf(b, `\u%04x`, u)
			}
		}
		i += n
	}
	return b
}

// printf prints text. What a relay, a site or a visitor has said goes through printable first.
func (v *view) printf(format string, values ...any) { fmt.Fprintf(v.out, format, values...) }

// note tells a person something that a program does not want to read: it goes to stderr, and not with --json.
func (v *view) note(format string, values ...any) {
	if !v.json {
		fmt.Fprintf(v.errs, format+"\n", values...)
	}
}

// column is one of a table.
type column struct {
	title string
	right bool // of numbers: they end at the same place
	min   int  // cells that it may be cut to where the terminal is too narrow; 0: it is never cut
	wide  int  // cells that it has at least, so that it does not move when its values change
	drop  int  // where that is not enough, columns are left out, those with the highest number first; 0: never
}

// table has lines whose columns are aligned.
type table struct {
	columns []column
	rows    [][]cell
}

// cell is one value of a table.
type cell struct {
	text  string
	style style
}

// style is how a cell is shown where there are colours: the number of an SGR sequence, 0 for none.
type style int

const (
	bold   style = 1
	dim    style = 2
	red    style = 31
	green  style = 32
	yellow style = 33
)

func (s style) of(text string) cell { return cell{text, s} }

// paint puts the sequences of s around text.
func (s style) paint(text string) string {
	if s == 0 {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", s, text)
}

// newTable makes a table of columns by their titles: "NAME", ">BYTES" for numbers, "PATH~20" for one that may be cut to 20 cells.
func newTable(titles ...string) *table {
	t := &table{columns: make([]column, len(titles))}
	for i, title := range titles {
		c := &t.columns[i]
		if name, min, ok := strings.Cut(title, "~"); ok {
			title = name
			fmt.Sscan(min, &c.min)
		}
		c.title, c.right = strings.CutPrefix(title, ">")
	}
	return t
}

// add adds a row. Values are made printable; those of type cell have a style.
func (t *table) add(values ...any) {
	row := make([]cell, len(t.columns))
	for i, value := range values {
		switch value := value.(type) {
		case cell:
			row[i] = cell{oneLine(value.text), value.style}
		default:
			row[i] = cell{text: oneLine(fmt.Sprint(value))}
		}
	}
	t.rows = append(t.rows, row)
}

// table prints t. Where the terminal is too narrow, the widest of the columns that may be cut are.
func (v *view) table(t *table) {
	for _, line := range t.lines(v.width, v.color, v.plain) {
		fmt.Fprintln(v.out, line)
	}
}

// gap is between two columns.
const gap = 2

// lines lays t out: within width cells if that is not 0 and can be done. plain has one tab between columns instead.
func (t *table) lines(width int, color, plain bool) []string {
	head := make([]cell, len(t.columns))
	for i, c := range t.columns {
		head[i] = cell{c.title, bold}
	}
	all := append([][]cell{head}, t.rows...)
	if plain {
		var lines []string
		for _, row := range all {
			texts := make([]string, len(row))
			for i, c := range row {
				texts[i] = c.text
			}
			lines = append(lines, strings.Join(texts, "\t"))
		}
		return lines
	}
	widths, shown := t.widths(all, width)
	var lines []string
	for _, row := range all {
		var b strings.Builder
		for n, i := range shown {
			c := row[i]
			text := cut(c.text, widths[i])
			pad := strings.Repeat(" ", widths[i]-cells(text))
			if color && text != "" {
				text = c.style.paint(text)
			}
			if t.columns[i].right {
				b.WriteString(pad + text)
			} else {
				b.WriteString(text + pad)
			}
			if n < len(shown)-1 {
				b.WriteString(strings.Repeat(" ", gap))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// widths returns how wide each column is, and which are shown. It does what it can to stay within width cells, if that is not 0.
func (t *table) widths(rows [][]cell, width int) (widths, shown []int) {
	widths = make([]int, len(t.columns))
	for i := range widths {
		shown = append(shown, i)
		widths[i] = t.columns[i].wide
		for _, row := range rows {
			widths[i] = max(widths[i], cells(row[i].text))
		}
	}
	if width <= 0 {
		return widths, shown
	}
	for {
		least, total := gap*(len(shown)-1), gap*(len(shown)-1)
		for _, i := range shown {
			total += widths[i]
			least += t.least(i, widths[i])
		}
		if least > width { // leave a column out
			last := -1
			for n, i := range shown {
				if t.columns[i].drop > 0 && (last < 0 || t.columns[i].drop > t.columns[shown[last]].drop) {
					last = n
				}
			}
			if last >= 0 {
				shown = slices.Delete(shown, last, last+1)
				continue
			}
		}
		for ; total > width; total-- { // a cell at a time, of the widest that can give one
			widest := -1
			for _, i := range shown {
				if widths[i] > t.least(i, widths[i]) && (widest < 0 || widths[i] > widths[widest]) {
					widest = i
				}
			}
			if widest < 0 {
				break // it does not fit; a terminal that wraps shows it all
			}
			widths[widest]--
		}
		return widths, shown
	}
}

// least is how narrow a column can be that would like to have so many cells.
func (t *table) least(i, width int) int {
	c := t.columns[i]
	if c.min == 0 {
		return width
	}
	return min(width, max(c.min, cells(c.title)))
}

// cells is how many cells of a terminal s takes.
func cells(s string) (n int) {
	for _, r := range s {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cut shortens s to n cells; the last one says that something is missing.
func cut(s string, n int) string {
	if cells(s) <= n {
		return s
	}
	taken := 0
	for i, r := range s {
		if taken+runeCells(r) > n-1 {
			return s[:i] + strings.Repeat("…", min(max(n, 0), 1))
		}
		taken += runeCells(r)
	}
	return s
}

// printable removes what could steer a terminal: some texts come from a relay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// oneLine is printable for what has one line.
func oneLine(s string) string { return strings.ReplaceAll(printable(s), "\n", "?") }

// dash is s, or what stands for nothing.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
