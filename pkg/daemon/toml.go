package daemon

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile bounds a configuration file: a path given by mistake (a disk image, a log) is refused, not read.
const maxFile = 4 << 20

// A Problem is one mistake in a configuration file.
type Problem struct {
	File         string
	Line, Column int // from 1; Column counts bytes. Both are 0 when the problem has no place in the file.
	Message      string
}

func (p *Problem) Error() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Message)
}

// Problems are all the mistakes found in one file, in the order of their lines.
// ExitCode maps it to ExitUsage.
type Problems []*Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// A File remembers where each value of a decoded TOML file stands, so that a check made after decoding can
// point at the line. Paths are written as in `listen.https` and `service[1].publish`, indexes from 0.
type File struct {
	Name  string
	place map[string]unstable.Position

	problems Problems
}

// ReadFile reads the TOML file into v, a pointer to a struct with `toml:"..."` tags on every field.
//
// It is strict: all unknown and misspelt keys and all values of a wrong type are returned at once, as
// Problems. Keys are matched exactly; TOML is case-sensitive.
//
// If check is not nil and every value had its type, check looks at v and adds what else is wrong.
func ReadFile(name string, v any, check func(f *File)) error {
	info, err := os.Stat(name)
	if err != nil {
		return UsageError(err.Error())
	}
	if info.Size() > maxFile {
		return UsageError(fmt.Sprintf("%s: larger than %d bytes, not a configuration file", name, maxFile))
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return UsageError(err.Error())
	}
	return Decode(name, data, v, check)
}

// Decode is ReadFile for bytes that are already here. Name appears in the problems.
func Decode(name string, data []byte, v any, check func(f *File)) error {
	f := &File{Name: name, place: make(map[string]unstable.Position)}
	w := walker{file: f}
	w.parser.Reset(data)
	w.document(reflect.TypeOf(v).Elem())
	if err := w.parser.Error(); err != nil {
		// What follows a syntax error is guesswork: report what came before it, and the error.
		f.addSyntax(data, err)
		return f.Problems()
	}
	if w.mistyped {
		return f.Problems()
	}
	// What is left is a key defined twice, and the like.
	if err := toml.Unmarshal(data, v); err != nil {
		f.addSyntax(data, err)
		return f.Problems()
	}
	if check != nil {
		check(f)
	}
	return f.Problems()
}

// Addf records a problem with the value at path. When the file has no such value (it is missing), the problem
// is put on the table that should hold it.
func (f *File) Addf(path, format string, args ...any) {
	p := &Problem{File: f.Name, Message: fmt.Sprintf(format, args...)}
	for {
		at, ok := f.place[path]
		if ok {
			p.Line, p.Column = at.Line, at.Column
			break
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			break
		}
		path = path[:i]
	}
	f.problems = append(f.problems, p)
}

// Has reports whether the file sets the value at path, be it to its default.
func (f *File) Has(path string) bool {
	_, ok := f.place[path]
	return ok
}

// Problems returns what decoding and Addf have found, by line, or nil.
func (f *File) Problems() error {
	if len(f.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(f.problems, func(a, b *Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return f.problems
}

func (f *File) addAt(at unstable.Position, format string, args ...any) {
	f.problems = append(f.problems, &Problem{File: f.Name, Line: at.Line, Column: at.Column, Message: fmt.Sprintf(format, args...)})
}

// addSyntax records an error of the TOML parser or decoder.
func (f *File) addSyntax(data []byte, err error) {
	var syntax *unstable.ParserError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &syntax):
		var p unstable.Parser
		p.Reset(data)
		f.addAt(p.Shape(p.Range(syntax.Highlight)).Start, "%s", syntax.Message)
	case errors.As(err, &decode):
		line, column := decode.Position()
		f.addAt(unstable.Position{Line: line, Column: column}, "%s", strings.TrimPrefix(decode.Error(), "toml: "))
	default:
		f.problems = append(f.problems, &Problem{File: f.Name, Message: err.Error()})
	}
}

// A walker goes over the expressions of a document beside the type that they are meant for.
type walker struct {
	file   *File
	parser unstable.Parser
	tables map[string]int // elements seen of each [[array of tables]], by path

	mistyped bool // a value has the wrong type, so that the document cannot be decoded
}

// mistype records a value of a wrong type.
func (w *walker) mistype(at unstable.Position, format string, args ...any) {
	w.mistyped = true
	w.file.addAt(at, format, args...)
}

func (w *walker) document(root reflect.Type) {
	w.tables = make(map[string]int)
	table, path := root, "" // the open table; its type is nil when it is unknown
	for w.parser.NextExpression() {
		e := w.parser.Expression()
		switch e.Kind {
		case unstable.KeyValue:
			w.keyValue(e, table, path)
		case unstable.Table, unstable.ArrayTable:
			table, path = w.header(e, root)
		}
	}
}

// header follows [a.b] or [[a.b]] from the root and returns the table's type and path.
func (w *walker) header(e *unstable.Node, root reflect.Type) (reflect.Type, string) {
	t, path := root, ""
	for keys := e.Key(); keys.Next(); {
		key := keys.Node()
		t, path = w.key(key, t, path)
		if t == nil {
			return nil, ""
		}
		if isTables(t) {
			n := w.tables[path]
			if e.Kind == unstable.ArrayTable && keys.IsLast() {
				n++
				w.tables[path] = n
			}
			if n == 0 {
				w.mistype(w.start(key), "%q is written [[%s]]", path, path)
				return nil, ""
			}
			t, path = t.Elem(), fmt.Sprintf("%s[%d]", path, n-1)
			w.file.place[path] = w.start(key)
			continue
		}
		if !isTable(t) {
			w.mistype(w.start(key), "%q is a value, not a table: write %s = ...", path, path)
			return nil, ""
		}
		if e.Kind == unstable.ArrayTable && keys.IsLast() {
			w.mistype(w.start(key), "%q is written [%s], once", path, path)
			return nil, ""
		}
	}
	return t, path
}

// keyValue checks `a.b = value` in the table.
func (w *walker) keyValue(e *unstable.Node, table reflect.Type, path string) {
	t := table
	for keys := e.Key(); keys.Next(); {
		if t == nil {
			return
		}
		if !isTable(t) {
			w.mistype(w.start(keys.Node()), "%q is a value, not a table", path)
			return
		}
		t, path = w.key(keys.Node(), t, path)
	}
	if t != nil {
		w.value(e.Value(), t, path)
	}
}

// key looks up one key in the table; the type is nil after it has reported an unknown one.
func (w *walker) key(key *unstable.Node, table reflect.Type, path string) (reflect.Type, string) {
	name := string(key.Data)
	if path != "" {
		path += "."
	}
	path += name
	if table.Kind() == reflect.Map { // of any names
		w.file.place[path] = w.start(key)
		return table.Elem(), path
	}
	var known []string
	for _, field := range reflect.VisibleFields(table) {
		tag := field.Tag.Get("toml")
		if field.Anonymous {
			continue // its fields are among them
		}
		if tag == name {
			w.file.place[path] = w.start(key)
			return field.Type, path
		}
		known = append(known, tag)
	}
	w.file.addAt(w.start(key), "unknown key %q%s", name, suggest(name, known))
	return nil, ""
}

func (w *walker) value(v *unstable.Node, t reflect.Type, path string) {
	if v.Raw.Length > 0 {
		w.file.place[path] = w.start(v)
	}
	at := w.file.place[path]
	if t == reflect.TypeFor[Strings]() && v.Kind == unstable.String {
		return
	}
	if t == reflect.TypeFor[Size]() && v.Kind == unstable.Integer {
		return
	}
	if isText(t) && t.Kind() != reflect.Slice {
		if v.Kind != unstable.String {
			w.mistype(at, "%s must be a string, not %s", path, kindName(v.Kind))
			return
		}
		if err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText(v.Data); err != nil {
			w.mistype(at, "%s: %v", path, err)
		}
		return
	}
	want := ""
	switch t.Kind() {
	case reflect.String:
		if v.Kind != unstable.String {
			want = "a string"
		}
	case reflect.Bool:
		if v.Kind != unstable.Bool {
			want = "true or false"
		}
	case reflect.Int, reflect.Int64:
		if v.Kind != unstable.Integer {
			want = "an integer"
		}
	case reflect.Struct, reflect.Map:
		if v.Kind != unstable.InlineTable {
			want = "a table"
			break
		}
		for children := v.Children(); children.Next(); {
			w.keyValue(children.Node(), t, path)
		}
	case reflect.Slice:
		if v.Kind != unstable.Array {
			want = "a list"
			if t == reflect.TypeFor[Strings]() {
				want = "a string or a list of strings"
			}
			break
		}
		i := 0
		for children := v.Children(); children.Next(); i++ {
			element := fmt.Sprintf("%s[%d]", path, i)
			w.file.place[element] = at
			w.value(children.Node(), t.Elem(), element)
		}
	case reflect.Interface: // BoolOrString
		if v.Kind != unstable.Bool && v.Kind != unstable.String {
			want = "true, false or a string"
		}
	default:
		panic(fmt.Sprintf("BUG: a configuration field of type %v", t))
	}
	if want != "" {
		w.mistype(at, "%s must be %s, not %s", path, want, kindName(v.Kind))
	}
}

func (w *walker) start(n *unstable.Node) unstable.Position {
	return w.parser.Shape(n.Raw).Start
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isTable reports whether a value of type t is written as a table.
func isTable(t reflect.Type) bool {
	return (t.Kind() == reflect.Struct || t.Kind() == reflect.Map) && !isText(t)
}

func isTables(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && !isText(t.Elem())
}

func kindName(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a string"
	case unstable.Bool:
		return "a boolean"
	case unstable.Integer:
		return "an integer"
	case unstable.Float:
		return "a float"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable:
		return "a table"
	}
	return "a date or time"
}

// suggest names the nearest known key when one is near enough to have been meant, else all of them.
func suggest(name string, known []string) string {
	best, distance := "", 2+len(name)/4
	for _, k := range known {
		if d := editDistance(strings.ToLower(name), k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return " (valid keys: " + strings.Join(known, ", ") + ")"
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance is the least number of bytes to insert, delete, replace or swap with their neighbour that
// makes b of a (optimal string alignment).
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// Duration is a TOML string such as "30s" or "1h30m"; negative ones are refused.
type Duration time.Duration

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration, such as \"30s\" or \"5m\"", b)
	}
	if v < 0 {
		return fmt.Errorf("duration %q is negative", b)
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes: a TOML integer, which may be negative, or a string such as "10MB" or "64KiB".
type Size int64

var sizeUnits = []struct {
	unit  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}

func (s *Size) UnmarshalText(b []byte) error {
	text := strings.ReplaceAll(string(b), "_", "")
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is not a size, such as \"10MB\", \"64KiB\" or a number of bytes", b)
}

// Strings is a TOML string or a list of strings.
type Strings []string

// UnmarshalText takes the form of a single string.
func (s *Strings) UnmarshalText(b []byte) error {
	*s = Strings{string(b)}
	return nil
}

// BoolOrString is a TOML boolean or string, and is one of Go; nil if there is none.
type BoolOrString any

// PortRange is a TOML string such as "40000-40999", the first and the last port; zero if there is none, or "".
type PortRange [2]uint16

func (r *PortRange) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = PortRange{}
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	low, err := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || err != nil || err2 != nil || low == 0 || low > high {
		return fmt.Errorf("%q is not a range of ports, such as \"40000-40999\"", b)
	}
	*r = PortRange{uint16(low), uint16(high)}
	return nil
}

// Has reports whether the port of an address, such as ":69", is one of r.
func (r PortRange) Has(address string) bool {
	_, text, err := net.SplitHostPort(address)
	port, numErr := strconv.ParseUint(text, 10, 16)
	return err == nil && numErr == nil && r != PortRange{} && uint64(r[0]) <= port && port <= uint64(r[1])
}

// InDir is the path of a file that a configuration in the folder dir names: relative ones begin there.
func InDir(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}
