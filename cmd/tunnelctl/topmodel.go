package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/admin"
)

// top is the state of the live view: what the relay says and keys go in, lines come out. It knows no terminal, relay or
// clock, and belongs to the goroutine of liveView.run.
type top struct {
	width, height int // of the terminal
	color         bool
	once          bool // one look on paper: nothing that is for a screen

	// What the relay has said.
	relay, version string // its domain
	uptime         time.Duration
	sites          []siteRow
	services       []serviceRow
	streams        []streamRow
	figures        admin.Figures // the last ones; its Time is zero as long as there are none
	requests       float64       // per second, since those before
	trouble        string        // why there are no new ones; "": there are
	since          time.Time     // when trouble began

	// What the user has chosen.
	section int // that keys are about
	alone   bool
	orders  [sections]order
	scroll  [sections]int // rows that are above
	filter  string
	typing  bool // the filter
	paused  bool
	help    bool
}

// The sections, from above.
const (
	topSites = iota
	topServices
	topStreams
	sections
)

var sectionNames = [sections]string{"sites", "services", "streams"}

// order is by which column a section is sorted.
type order struct {
	column    int
	ascending bool
}

type (
	siteRow    = admin.SiteFigures
	serviceRow = admin.ServiceFigures
)

// streamRow is a stream and how fast it is.
type streamRow struct {
	admin.Stream
	in, out float64 // bytes per second since the last look
	age     time.Duration
}

// field is one column of a section.
type field[T any] struct {
	column
	cell func(T) cell
	less func(a, b T) int // ascending
}

var siteFields = []field[siteRow]{
	{column{title: "SITE", min: 16}, func(s siteRow) cell { return cell{text: s.Name} }, func(a, b siteRow) int { return cmp.Compare(a.Name, b.Name) }},
	{column{title: "STATE", min: 9}, func(s siteRow) cell { return stateStyle(s.State).of(s.State) }, func(a, b siteRow) int { return cmp.Compare(a.State, b.State) }},
	{column{title: "RTT", right: true, wide: 7, drop: 2}, func(s siteRow) cell { return cell{text: millis(s.RTT)} }, func(a, b siteRow) int { return cmp.Compare(a.RTT, b.RTT) }},
	{column{title: "SESSIONS", right: true, drop: 5}, func(s siteRow) cell { return number(s.Sessions) }, func(a, b siteRow) int { return cmp.Compare(a.Sessions, b.Sessions) }},
	{column{title: "LINKS", right: true, drop: 4}, func(s siteRow) cell { return number(s.Links) }, func(a, b siteRow) int { return cmp.Compare(a.Links, b.Links) }},
	{column{title: "STREAMS", right: true, drop: 3}, func(s siteRow) cell { return number(s.Streams) }, func(a, b siteRow) int { return cmp.Compare(a.Streams, b.Streams) }},
	{column{title: "IN", right: true, wide: 11, drop: 1}, func(s siteRow) cell { return cell{text: speed(s.In)} }, func(a, b siteRow) int { return cmp.Compare(a.In, b.In) }},
	{column{title: "OUT", right: true, wide: 11, drop: 1}, func(s siteRow) cell { return cell{text: speed(s.Out)} }, func(a, b siteRow) int { return cmp.Compare(a.Out, b.Out) }},
}

var serviceFields = []field[serviceRow]{
	{column{title: "SERVICE", min: 24}, func(s serviceRow) cell { return cell{text: s.Site + "/" + s.Name} }, func(a, b serviceRow) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Name, b.Name))
	}},
	{column{title: "VISITORS", right: true, drop: 3}, func(s serviceRow) cell { return number(s.Visitors) }, func(a, b serviceRow) int { return cmp.Compare(a.Visitors, b.Visitors) }},
	{column{title: "REQUESTS", right: true, drop: 2}, func(s serviceRow) cell { return cell{text: perSecond(s.Requests)} }, func(a, b serviceRow) int { return cmp.Compare(a.Requests, b.Requests) }},
	{column{title: "ERRORS", right: true, drop: 4}, func(s serviceRow) cell {
		if s.Errors > 0 {
			return red.of(perSecond(s.Errors))
		}
		return cell{text: "-"}
	}, func(a, b serviceRow) int { return cmp.Compare(a.Errors, b.Errors) }},
	{column{title: "IN", right: true, wide: 11, drop: 1}, func(s serviceRow) cell { return cell{text: speed(s.In)} }, func(a, b serviceRow) int { return cmp.Compare(a.In, b.In) }},
	{column{title: "OUT", right: true, wide: 11, drop: 1}, func(s serviceRow) cell { return cell{text: speed(s.Out)} }, func(a, b serviceRow) int { return cmp.Compare(a.Out, b.Out) }},
}

var streamFields = []field[streamRow]{
	{column{title: "ID", drop: 6}, func(s streamRow) cell { return cell{text: s.ID} }, func(a, b streamRow) int { return cmp.Compare(a.ID, b.ID) }},
	{column{title: "STREAM OF", min: 20}, func(s streamRow) cell { return cell{text: s.Site + "/" + s.Service} }, func(a, b streamRow) int {
		return cmp.Or(cmp.Compare(a.Site, b.Site), cmp.Compare(a.Service, b.Service))
	}},
	{column{title: "FROM", min: 22, drop: 2}, func(s streamRow) cell {
		if s.Operator != "" {
			return cell{text: s.Operator + " " + s.Remote}
		}
		return cell{text: s.Remote}
	}, func(a, b streamRow) int { return cmp.Compare(a.Remote, b.Remote) }},
	{column{title: "AGE", right: true, wide: 6, drop: 3}, func(s streamRow) cell { return cell{text: age(s.age)} }, func(a, b streamRow) int { return cmp.Compare(a.age, b.age) }},
	{column{title: "IDLE", right: true, wide: 6, drop: 5}, func(s streamRow) cell { return cell{text: age(time.Duration(s.Idle * float64(time.Second)))} }, func(a, b streamRow) int {
		return cmp.Compare(a.Idle, b.Idle)
	}},
	{column{title: "IN", right: true, wide: 11, drop: 1}, func(s streamRow) cell { return cell{text: speed(s.in)} }, func(a, b streamRow) int { return cmp.Compare(a.in, b.in) }},
	{column{title: "OUT", right: true, wide: 11, drop: 1}, func(s streamRow) cell { return cell{text: speed(s.out)} }, func(a, b streamRow) int { return cmp.Compare(a.out, b.out) }},
}

// columnsOf are those of a section.
func columnsOf(section int) []column {
	switch section {
	case topSites:
		return columnsIn(siteFields)
	case topServices:
		return columnsIn(serviceFields)
	}
	return columnsIn(streamFields)
}

func columnsIn[T any](fields []field[T]) (columns []column) {
	for _, f := range fields {
		columns = append(columns, f.column)
	}
	return columns
}

func number(n int) cell { return cell{text: fmt.Sprint(n)} }

// newTop makes the view of a terminal: sites by name, what is busy first in the rest.
func newTop(width, height int, color bool) *top {
	m := &top{width: width, height: height, color: color}
	m.orders[topSites] = order{column: 0, ascending: true}
	m.orders[topServices] = order{column: len(serviceFields) - 1}
	m.orders[topStreams] = order{column: len(streamFields) - 1}
	return m
}

// meet is told what the relay says of itself.
func (m *top) meet(s *admin.Status) {
	m.relay, m.version, m.uptime = s.Domain, s.Version, time.Duration(s.Uptime*float64(time.Second))
}

// see is told the figures of a moment.
func (m *top) see(f admin.Figures) {
	m.trouble = ""
	if m.paused {
		return
	}
	m.requests = 0
	took := f.Time.Sub(m.figures.Time)
	if !m.figures.Time.IsZero() && took > 0 {
		if f.Requests >= m.figures.Requests {
			m.requests = float64(f.Requests-m.figures.Requests) / took.Seconds()
		}
		m.uptime += took
	}
	m.figures, m.sites, m.services = f, f.Sites, f.Services
}

// seeStreams is told which streams there are. It knows how fast they are from what they had moved before.
func (m *top) seeStreams(now time.Time, streams []admin.Stream) {
	if m.paused {
		return
	}
	was := make(map[string]streamRow, len(m.streams))
	for _, s := range m.streams {
		was[s.ID] = s
	}
	rows := make([]streamRow, 0, len(streams))
	for _, s := range streams {
		row := streamRow{Stream: s, age: now.Sub(s.Since)}
		before, known := was[s.ID]
		took := (row.age - before.age).Seconds()
		if !known {
			took = row.age.Seconds()
		}
		if took > 0 && s.Received >= before.Received && s.Sent >= before.Sent && (known || took < 3) {
			row.in, row.out = float64(s.Received-before.Received)/max(took, 0.2), float64(s.Sent-before.Sent)/max(took, 0.2)
		}
		rows = append(rows, row)
	}
	m.streams = rows
}

// lose is told that the relay does not answer any more.
func (m *top) lose(why string, now time.Time) {
	if m.trouble == "" {
		m.since = now
	}
	m.trouble = why
}

// press does what a key says. It returns true when the view is to end.
func (m *top) press(k key) (quit bool) {
	if m.typing {
		switch {
		case k == keyEnter:
			m.typing = false
		case k == keyEscape:
			m.typing, m.filter = false, ""
		case k == keyBackspace:
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		case k == keyInterrupt:
			return true
		case k >= ' ' && len(m.filter) < 64:
			m.filter += string(rune(k))
		}
		m.scroll = [sections]int{}
		return false
	}
	if m.help {
		m.help = false
		return k == 'q' || k == keyInterrupt
	}
	o := &m.orders[m.section]
	columns := columnsOf(m.section)
	switch k {
	case 'q', keyInterrupt:
		return true
	case keyEscape:
		m.filter, m.alone = "", false
	case ' ', 'p':
		m.paused = !m.paused
	case '/':
		m.typing = true
	case '?', 'h':
		m.help = true
	case keyTab:
		m.section = (m.section + 1) % sections
	case '0':
		m.alone = false
	case '1', '2', '3':
		section := int(k - '1')
		m.alone = !m.alone || section != m.section
		m.section = section
	case 's', '>', keyRight:
		m.sortBy((o.column + 1) % len(columns))
	case 'S', '<', keyLeft:
		m.sortBy((o.column + len(columns) - 1) % len(columns))
	case 'r':
		o.ascending = !o.ascending
	case 'j', keyDown:
		m.scroll[m.section]++
	case 'k', keyUp:
		m.scroll[m.section]--
	case keyPageDown:
		m.scroll[m.section] += max(1, m.height/2)
	case keyPageUp:
		m.scroll[m.section] -= max(1, m.height/2)
	case keyHome, 'g':
		m.scroll[m.section] = 0
	case keyEnd, 'G':
		m.scroll[m.section] = len(m.streams) + len(m.sites) + len(m.services)
	}
	return false
}

// sortBy sorts the section by a column: names from the beginning, numbers from the largest.
func (m *top) sortBy(n int) {
	m.orders[m.section] = order{column: n, ascending: !columnsOf(m.section)[n].right}
}

// matches says whether one of the texts has what the user filters for.
func (m *top) matches(texts ...string) bool {
	if m.filter == "" {
		return true
	}
	for _, t := range texts {
		if strings.Contains(strings.ToLower(t), strings.ToLower(m.filter)) {
			return true
		}
	}
	return false
}

// table lays one section out, sorted.
func (m *top) table(section int) *table {
	t := m.sorted(section)
	if !m.once {
		c := &t.columns[m.orders[section].column]
		c.title += map[bool]string{true: "▲", false: "▼"}[m.orders[section].ascending]
	}
	return t
}

func (m *top) sorted(section int) *table {
	switch section {
	case topSites:
		return lay(siteFields, m.orders[section], slices.DeleteFunc(slices.Clone(m.sites), func(s siteRow) bool { return !m.matches(s.Name, s.State) }))
	case topServices:
		return lay(serviceFields, m.orders[section], slices.DeleteFunc(slices.Clone(m.services), func(s serviceRow) bool { return !m.matches(s.Site + "/" + s.Name) }))
	}
	return lay(streamFields, m.orders[section], slices.DeleteFunc(slices.Clone(m.streams), func(s streamRow) bool {
		return !m.matches(s.Site+"/"+s.Service, s.Remote, s.Operator, s.Host, s.ID)
	}))
}

func lay[T any](fields []field[T], o order, rows []T) *table {
	t := new(table)
	for i, f := range fields {
		c := f.column
		if i == o.column {
			c.drop = 0 // it is sorted by it
		}
		t.columns = append(t.columns, c)
	}
	slices.SortStableFunc(rows, func(a, b T) int {
		n := fields[o.column].less(a, b)
		if !o.ascending {
			n = -n
		}
		return cmp.Or(n, fields[0].less(a, b))
	})
	for _, row := range rows {
		values := make([]any, len(fields))
		for i, f := range fields {
			values[i] = f.cell(row)
		}
		t.add(values...)
	}
	return t
}

// frame returns the lines to be shown: at most height, none wider than the terminal.
func (m *top) frame(now time.Time) []string {
	if m.width < 1 || m.height < 1 {
		return nil
	}
	var lines []string
	if m.help {
		lines = m.helpLines()
	} else {
		lines = m.head(now)
		foot := m.foot()
		if m.height < 6 {
			foot = nil
		}
		lines = append(lines, m.body(m.height-len(lines)-len(foot))...)
		for len(lines) < m.height-len(foot) {
			lines = append(lines, "")
		}
		lines = append(lines[:max(0, min(len(lines), m.height-len(foot)))], foot...)
	}
	return lines[:min(len(lines), m.height)]
}

// flow puts parts into lines, none of which is cut unless it alone is too wide.
func flow(parts []string, width int) (lines []string) {
	line := ""
	for _, p := range parts {
		switch {
		case line == "":
			line = p
		case cells(line)+gap+cells(p) <= width:
			line += strings.Repeat(" ", gap) + p
		default:
			lines, line = append(lines, line), p
		}
	}
	lines = append(lines, line)
	for i := range lines {
		lines[i] = cut(lines[i], width)
	}
	return lines
}

// head is which relay this is, and its figures in all.
func (m *top) head(now time.Time) (lines []string) {
	name := oneLine(cmp.Or(m.relay, "culvert"))
	state, style := "live", green
	switch {
	case m.once:
		state = ""
	case m.trouble != "":
		state, style = "no answer for "+age(now.Sub(m.since)), red
	case m.figures.Time.IsZero():
		state, style = "waiting", yellow
	case m.paused:
		state, style = "paused at "+m.figures.Time.Local().Format(time.TimeOnly), yellow
	}
	about := []string{name}
	if m.version != "" {
		about = append(about, oneLine(m.version), "up "+age(m.uptime))
	}
	for len(about) > 1 && cells(strings.Join(about, "  "))+gap+cells(state) > m.width {
		about = about[:len(about)-1]
	}
	text := strings.Join(about, "  ")
	if cells(state) > m.width {
		state = cut(state, m.width)
	}
	if room := m.width - cells(state) - gap; room < cells(text) && room < 8 {
		text = "" // the state matters more
	} else {
		text = cut(text, room)
	}
	pad := strings.Repeat(" ", max(0, m.width-cells(text)-cells(state)))
	lines = append(lines, strings.TrimRight(m.paint(bold, text)+pad+m.paint(style, state), " "))

	f := m.figures
	if !f.Time.IsZero() && m.height >= 4 {
		var in, out float64
		up := 0
		for _, s := range f.Sites {
			in, out = in+s.In, out+s.Out
			if s.State == admin.StateConnected {
				up++
			}
		}
		figures := flow([]string{
			"in " + total(speed(in), "0 B/s"), "out " + total(speed(out), "0 B/s"), total(perSecond(m.requests), "0/s") + " requests", plural(f.Visitors, "visitor"), plural(f.Streams, "stream"),
			fmt.Sprintf("%d of %s connected", up, plural(len(f.Sites), "site")),
		}, m.width)
		lines = append(lines, figures[:min(len(figures), max(1, m.height/6))]...)
	}
	if m.trouble != "" && m.height >= 4 {
		wrapped := flow(strings.Fields(oneLine(m.trouble)), m.width)
		for _, l := range wrapped[:min(len(wrapped), max(1, m.height/6))] {
			lines = append(lines, m.paint(red, strings.ReplaceAll(l, "  ", " ")))
		}
	}
	if m.height >= 10 {
		lines = append(lines, "")
	}
	return lines
}

// total is one of the head, where nothing is a number, too.
func total(s, zero string) string {
	if s == "-" {
		return zero
	}
	return s
}

// plural counts things.
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (m *top) paint(s style, text string) string {
	if !m.color || text == "" {
		return text
	}
	return s.paint(text)
}

// foot says what keys there are, and what was chosen.
func (m *top) foot() []string {
	if m.typing {
		return []string{cut("filter: "+oneLine(m.filter)+"_   Enter keeps it, Esc drops it", m.width)}
	}
	o := m.orders[m.section]
	parts := []string{"q quit", "? help", fmt.Sprintf("Tab %s", sectionNames[m.section]), "s sort " + strings.ToLower(columnsOf(m.section)[o.column].title), "r reverse", "/ filter", "p pause", "1 2 3 alone"}
	if m.filter != "" {
		parts = slices.Insert(parts, 2, "filter "+oneLine(m.filter))
	}
	line := flow(parts, m.width)[0]
	return []string{m.paint(dim, line)}
}

func (m *top) helpLines() []string {
	text := [][2]string{
		{"q, Ctrl-C", "quit"},
		{"Tab", "the next section: sort and arrows are for that"},
		{"1 2 3", "sites, services or streams alone; 0, Esc all"},
		{"s S, arrows", "sort by the next, by the column before"},
		{"r", "the other way round"},
		{"/", "filter by a part of a name or an address"},
		{"p, space", "pause"},
		{"j k, arrows", "scroll; also Page Up and Down, Home, End"},
		{"Ctrl-L", "draw the screen anew"},
		{"", "IN is from visitors to the sites, OUT to visitors, per second."},
		{"", "tunnelctl streams kick ID ends a stream."},
	}
	lines := []string{m.paint(bold, cut("tunnelctl top", m.width))}
	for _, l := range text {
		lines = append(lines, cut(strings.TrimRight(fmt.Sprintf("%-12s %s", l[0], l[1]), " "), m.width))
	}
	return append(lines, "", m.paint(dim, cut("any key goes back", m.width)))
}

// body is what is between head and foot, in so many lines.
func (m *top) body(room int) (lines []string) {
	if room < 1 || m.figures.Time.IsZero() {
		return nil
	}
	which := []int{topSites, topServices, topStreams}
	if m.alone || room < 3*sections+2 {
		which = []int{m.section}
	}
	tables := make([]*table, len(which))
	wants := make([]int, len(which))
	for i, section := range which {
		tables[i] = m.table(section)
		wants[i] = 1 + max(1, len(tables[i].rows))
	}
	rooms := share(room-(len(which)-1), wants)
	for i, section := range which {
		if i > 0 {
			lines = append(lines, "")
		}
		lines = append(lines, m.sectionLines(section, tables[i], rooms[i])...)
	}
	return lines
}

// share divides lines so that nobody has more than it wants, and small ones have what they want.
func share(room int, wants []int) []int {
	rooms := make([]int, len(wants))
	for given := true; room > 0 && given; {
		given = false
		for i := range wants {
			if room > 0 && rooms[i] < wants[i] {
				rooms[i]++
				room--
				given = true
			}
		}
	}
	return rooms
}

// sectionLines are the title and the rows of a section, as many as there is room for.
func (m *top) sectionLines(section int, t *table, room int) []string {
	if room < 1 {
		return nil
	}
	if len(t.rows) == 0 {
		nothing := "no " + sectionNames[section]
		switch {
		case m.filter != "":
			nothing += " match the filter"
		case section == topSites:
			nothing += " yet: tunnelctl site add NAME"
		}
		return []string{cut(nothing, m.width)}
	}
	above := max(0, min(m.scroll[section], len(t.rows)-max(1, room-2)))
	if len(t.rows) <= room-1 {
		above = 0
	}
	m.scroll[section] = above
	rows := t.rows[above:]
	below := ""
	if hidden := len(t.rows) - (room - 1); hidden > 0 && room >= 3 {
		rows = rows[:min(len(rows), room-2)]
		below = cut(fmt.Sprintf("%d to %d of %d %s", above+1, above+len(rows), len(t.rows), sectionNames[section]), m.width)
	} else {
		rows = rows[:max(0, min(len(rows), room-1))]
	}
	// Widths are those of all rows, so that columns stay where they are while one scrolls.
	all := t.lines(m.width, m.color, false)
	lines := append([]string{clip(all[0], m.width)}, all[1+above:1+above+len(rows)]...)
	for i, l := range lines {
		lines[i] = clip(l, m.width)
	}
	if below != "" {
		lines = append(lines, m.paint(dim, below))
	}
	return lines
}

// clip is cut for a line with colours: it drops these if the line is too wide.
func clip(s string, width int) string {
	plain := withoutStyles(s)
	if cells(plain) <= width {
		return s
	}
	return cut(plain, width)
}

// withoutStyles removes what paint has put in.
func withoutStyles(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, s, _ = strings.Cut(after, "m")
	}
}
