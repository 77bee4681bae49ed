package rest

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// params are the parameters of a method: the fields of its In.
type params struct {
	t      reflect.Type
	list   []param
	checks bool // some of them have a default or bounds
}

// A param is one of them.
type param struct {
	name     string
	doc      string
	index    []int
	t        reflect.Type
	required bool
	inPath   bool // Path names it

	def      reflect.Value // what zero stands for; the zero Value: nothing
	min, max *float64      // of the number, or of the length
	enum     []string
}

var (
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
	rawType      = reflect.TypeFor[json.RawMessage]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonType     = reflect.TypeFor[json.Unmarshaler]()
)

// paramsOf looks at t. item is the name of the one that comes in the path, or "".
func paramsOf(t reflect.Type, item string) (*params, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v is no struct", t)
	}
	p := &params{t: t}
	if err := p.add(t, nil); err != nil {
		return nil, err
	}
	if i := p.find([]byte(item)); i >= 0 {
		p.list[i].inPath = true
	}
	return p, nil
}

// add adds the fields of a struct, those of embedded ones included.
func (p *params) add(t reflect.Type, index []int) error {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" && opts == "" || f.Anonymous && f.Type == resultsType {
			continue
		}
		at := append(slices.Clone(index), i)
		if f.Anonymous && tag == "" {
			if f.Type.Kind() == reflect.Struct {
				if err := p.add(f.Type, at); err != nil {
					return err
				}
				continue
			}
			if f.Type.Kind() == reflect.Pointer {
				return fmt.Errorf("field %s: is an embedded pointer: embed the struct", f.Name)
			}
		}
		if !f.IsExported() {
			continue
		}
		q := param{name: tag, doc: f.Tag.Get("doc"), index: at, t: f.Type}
		if tag == "" {
			q.name = f.Name
		}
		for o := range strings.SplitSeq(opts, ",") {
			if o == "string" {
				return fmt.Errorf("field %s: the option string of its tag is not supported", f.Name)
			}
		}
		optional := slices.ContainsFunc(strings.Split(opts, ","), func(o string) bool { return o == "omitempty" || o == "omitzero" })
		q.required = !optional && f.Type.Kind() != reflect.Pointer
		if p.find([]byte(q.name)) >= 0 {
			return fmt.Errorf("two parameters are called %q", q.name)
		}
		switch f.Type.Kind() {
		case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
			return fmt.Errorf("field %s: %v cannot be a parameter", f.Name, f.Type)
		}
		if err := q.tags(f.Tag); err != nil {
			return fmt.Errorf("field %s: %w", f.Name, err)
		}
		p.checks = p.checks || q.def.IsValid() || q.min != nil || q.max != nil || q.enum != nil
		p.list = append(p.list, q)
	}
	return nil
}

// tags reads the tags that bound a parameter.
func (q *param) tags(tag reflect.StructTag) error {
	for name, to := range map[string]**float64{"min": &q.min, "max": &q.max} {
		if s, ok := tag.Lookup(name); ok {
			f, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if _, ok := q.measure(reflect.Zero(q.t)); !ok {
				return fmt.Errorf("%s: %v has neither size nor length", name, q.t)
			}
			*to = &f
		}
	}
	if s, ok := tag.Lookup("enum"); ok {
		if q.t.Kind() != reflect.String {
			return errors.New("enum: is no text")
		}
		q.enum = strings.Split(s, ",")
	}
	if s, ok := tag.Lookup("default"); ok {
		q.required = false
		v := reflect.New(q.t).Elem()
		if err := fromText(v, []string{s}); err != nil {
			return fmt.Errorf("default: %w", err)
		}
		if err := q.check(v); err != nil {
			return fmt.Errorf("default: %w", err)
		}
		q.def = v
	}
	return nil
}

// find returns the parameter of a name, or -1.
func (p *params) find(name []byte) int {
	for i := range p.list {
		if n := p.list[i].name; len(n) == len(name) && strings.EqualFold(n, string(name)) {
			return i
		}
	}
	return -1
}

// names lists the parameters, for somebody who has used another one.
func (p *params) names() string {
	if len(p.list) == 0 {
		return "there are none"
	}
	names := make([]string, len(p.list))
	for i, q := range p.list {
		names[i] = q.name
	}
	return "there are " + strings.Join(names, ", ")
}

func badParam(name string, format string, a ...any) error {
	return Errorf(http.StatusBadRequest, "parameter %q: %s", name, fmt.Sprintf(format, a...))
}

// A given is the parameters of one call as they come: a query, an object in JSON, the item in the path.
type given struct {
	query url.Values
	body  []byte // JSON that is valid; empty: none
	item  string // "": none
}

// into fills in, a pointer to p.t.
func (g *given) into(p *params, in any) error {
	v := reflect.ValueOf(in).Elem()
	var few [16]bool
	seen := few[:]
	if len(p.list) > len(few) {
		seen = make([]bool, len(p.list))
	}
	take := func(name []byte) (int, error) {
		i := p.find(name)
		switch {
		case i < 0:
			return 0, Errorf(http.StatusBadRequest, "unknown parameter %.64q: %s", name, p.names())
		case seen[i]:
			return 0, badParam(p.list[i].name, "is given twice")
		}
		seen[i] = true
		return i, nil
	}
	if g.item != "" {
		for i := range p.list {
			if q := &p.list[i]; q.inPath {
				seen[i] = true
				if err := fromText(v.FieldByIndex(q.index), []string{g.item}); err != nil {
					return badParam(q.name, "%v", err)
				}
			}
		}
	}
	for name, values := range g.query {
		i, err := take([]byte(name))
		if err != nil {
			return err
		}
		q := &p.list[i]
		if len(values) == 1 && values[0] == "" && !isText(q.t) {
			seen[i] = false // as forms leave out what was not filled in
			continue
		}
		if err := fromText(v.FieldByIndex(q.index), values); err != nil {
			return badParam(q.name, "%v", err)
		}
	}
	if len(g.body) > 0 {
		err := members(g.body, func(name, value []byte) error {
			i, err := take(name)
			if err != nil {
				return err
			}
			q := &p.list[i]
			if string(value) == "null" {
				seen[i] = false
				return nil
			}
			if err := fromJSON(v.FieldByIndex(q.index), value); err != nil {
				return badParam(q.name, "%v", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i := range p.list {
		if q := &p.list[i]; q.required && !seen[i] {
			return badParam(q.name, "is missing")
		}
	}
	return p.settle(v)
}

// settle fills in what zero stands for and checks the bounds.
func (p *params) settle(v reflect.Value) error {
	if !p.checks {
		return nil
	}
	for i := range p.list {
		q := &p.list[i]
		f := v.FieldByIndex(q.index)
		if q.def.IsValid() && f.IsZero() {
			f.Set(q.def)
		}
		if err := q.check(f); err != nil {
			return badParam(q.name, "%v", err)
		}
	}
	return nil
}

// check says what is wrong with the value of a parameter. A pointer that is nil, and what may be left out and is zero, is right.
func (q *param) check(f reflect.Value) error {
	if !q.required && f.IsZero() {
		return nil
	}
	for f.Kind() == reflect.Pointer {
		f = f.Elem()
	}
	if q.enum != nil && !slices.Contains(q.enum, f.String()) {
		return fmt.Errorf("want one of %s, not %.64q", strings.Join(q.enum, ", "), f.String())
	}
	if q.min == nil && q.max == nil {
		return nil
	}
	n, _ := q.measure(f)
	what := ""
	switch f.Kind() {
	case reflect.String, reflect.Slice, reflect.Array, reflect.Map:
		what = " long"
	}
	switch {
	case q.min != nil && n < *q.min:
		return fmt.Errorf("want at least %v%s", *q.min, what)
	case q.max != nil && n > *q.max:
		return fmt.Errorf("want at most %v%s", *q.max, what)
	}
	return nil
}

// measure is what min and max bound.
func (q *param) measure(f reflect.Value) (n float64, ok bool) {
	if f.Kind() == reflect.Pointer {
		f = reflect.Zero(f.Type().Elem())
	}
	switch {
	case f.CanInt():
		return float64(f.Int()), true
	case f.CanUint():
		return float64(f.Uint()), true
	case f.CanFloat():
		return f.Float(), true
	}
	switch f.Kind() {
	case reflect.String:
		return float64(utf8.RuneCountInString(f.String())), true
	case reflect.Slice, reflect.Array, reflect.Map:
		return float64(f.Len()), true
	}
	return 0, false
}

// isText reports whether an empty text is a value of t.
func isText(t reflect.Type) bool {
	return t.Kind() == reflect.String || t == rawType || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 || t.Kind() == reflect.Interface
}

// own reports whether a type reads itself from text or JSON.
func own(t reflect.Type) (text, js bool) {
	p := reflect.PointerTo(t)
	return p.Implements(textType), p.Implements(jsonType)
}

// fromText sets v to what a query says.
func fromText(v reflect.Value, values []string) error {
	t := v.Type()
	text, js := own(t)
	bytesLike := t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8
	if t.Kind() == reflect.Slice && !bytesLike && !text && !js {
		if len(values) == 1 && strings.HasPrefix(values[0], "[") {
			return fromJSON(v, []byte(values[0]))
		}
		list := reflect.MakeSlice(t, len(values), len(values))
		for i := range values {
			if err := fromText(list.Index(i), values[i:i+1]); err != nil {
				return err
			}
		}
		v.Set(list)
		return nil
	}
	if len(values) != 1 {
		return errors.New("is given twice")
	}
	s := values[0]
	if t.Kind() == reflect.Pointer && !text && !js {
		e := reflect.New(t.Elem())
		if err := fromText(e.Elem(), values); err != nil {
			return err
		}
		v.Set(e)
		return nil
	}
	switch {
	case t == timeType:
		return timeFrom(v, s)
	case t == durationType:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			v.SetInt(n)
			return nil
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("want a time such as 1m30s, not %.64q", s)
		}
		v.SetInt(int64(d))
		return nil
	case text:
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			return fmt.Errorf("malformed: %.128s", err)
		}
		return nil
	case js || t.Kind() == reflect.Interface:
		b := []byte(s)
		if !json.Valid(b) {
			b, _ = json.Marshal(s)
		}
		return fromJSON(v, b)
	case bytesLike:
		b, err := fromBase64(s)
		if err != nil {
			return err
		}
		v.SetBytes(b)
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		if !utf8.ValidString(s) {
			return errors.New("is not UTF-8")
		}
		v.SetString(s)
	case reflect.Bool:
		switch {
		case s == "1" || strings.EqualFold(s, "true"):
			v.SetBool(true)
		case s == "0" || strings.EqualFold(s, "false"):
			v.SetBool(false)
		default:
			return fmt.Errorf("want true or false, not %.64q", s)
		}
	case reflect.Struct, reflect.Map, reflect.Array:
		b := []byte(s)
		if !json.Valid(b) {
			return errors.New("want JSON")
		}
		return fromJSON(v, b)
	default:
		return number(v, s)
	}
	return nil
}

// fromJSON sets v to a JSON value, which is valid.
func fromJSON(v reflect.Value, b []byte) error {
	t := v.Type()
	text, js := own(t)
	if t == timeType {
		if b[0] != '"' {
			return fmt.Errorf("want a time such as 2006-01-02T15:04:05Z, not %s", kindOf(b))
		}
		var s string
		json.Unmarshal(b, &s)
		return timeFrom(v, s)
	}
	if !text && !js {
		switch t.Kind() {
		case reflect.String:
			if b[0] != '"' {
				return fmt.Errorf("want a text, not %s", kindOf(b))
			}
			if in := b[1 : len(b)-1]; bytes.IndexByte(in, '\\') < 0 && utf8.Valid(in) {
				v.SetString(string(in))
				return nil
			}
		case reflect.Bool:
			if b[0] != 't' && b[0] != 'f' {
				return fmt.Errorf("want true or false, not %s", kindOf(b))
			}
			v.SetBool(b[0] == 't')
			return nil
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr, reflect.Float32, reflect.Float64:
			if b[0] != '-' && (b[0] < '0' || b[0] > '9') {
				return fmt.Errorf("want a number, not %s", kindOf(b))
			}
			return number(v, string(b))
		case reflect.Slice:
			if t.Elem().Kind() == reflect.Uint8 {
				if b[0] != '"' {
					return fmt.Errorf("want bytes in base64, not %s", kindOf(b))
				}
				var s string
				json.Unmarshal(b, &s)
				p, err := fromBase64(s)
				if err != nil {
					return err
				}
				v.SetBytes(p)
				return nil
			}
		}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v.Addr().Interface())
	var wrong *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		at := ""
		if wrong.Field != "" {
			at = fmt.Sprintf(" in %q", wrong.Field)
		}
		return fmt.Errorf("%.64s does not fit%s", wrong.Value, at)
	}
	return fmt.Errorf("malformed: %.128s", strings.TrimPrefix(err.Error(), "json: "))
}

// number sets v, which is one, to s.
func number(v reflect.Value, s string) error {
	var err error
	switch bits := v.Type().Bits(); {
	case v.CanInt():
		var n int64
		if n, err = strconv.ParseInt(s, 10, bits); err == nil {
			v.SetInt(n)
			return nil
		}
	case v.CanUint():
		var n uint64
		if n, err = strconv.ParseUint(s, 10, bits); err == nil {
			v.SetUint(n)
			return nil
		}
	default:
		var f float64
		if f, err = strconv.ParseFloat(s, bits); err == nil && (math.IsInf(f, 0) || math.IsNaN(f) || strings.ContainsAny(s, "xX_pP")) {
			err = strconv.ErrSyntax // strconv takes more than JSON does
		}
		if err == nil {
			v.SetFloat(f)
			return nil
		}
		if !errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("want a number, not %.64q", s)
		}
	}
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%.64s is out of range", s)
	}
	return fmt.Errorf("want a whole number, not %.64q", s)
}

// timeFrom sets v, a time.Time, by RFC 3339, or to the beginning of a day in UTC.
func timeFrom(v reflect.Value, s string) error {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		if t, err = time.Parse(time.DateOnly, s); err != nil {
			return fmt.Errorf("want a time such as 2006-01-02T15:04:05Z, not %.64q", s)
		}
	}
	v.Set(reflect.ValueOf(t))
	return nil
}

// fromBase64 takes both alphabets, with padding or without.
func fromBase64(s string) ([]byte, error) {
	s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("want bytes in base64")
	}
	return b, nil
}

// kindOf names the kind of a JSON value.
func kindOf(b []byte) string {
	switch b[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a text"
	case 't', 'f':
		return "true or false"
	case 'n':
		return "null"
	}
	return "a number"
}

// members calls f with each member of a JSON object, its name without quotes and escapes. b is valid JSON.
func members(b []byte, f func(name, value []byte) error) error {
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return Errorf(http.StatusBadRequest, "want the parameters as a JSON object")
	}
	for i := 1; ; i++ { // at '{' or ','; b[i] begins after it
		i = skipSpace(b, i)
		if b[i] == '}' {
			return nil
		}
		start := i
		i = skipValue(b, i)
		name := b[start+1 : i-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			var s string
			json.Unmarshal(b[start:i], &s)
			name = []byte(s)
		}
		i = skipSpace(b, i) + 1 // the colon
		i = skipSpace(b, i)
		start = i
		i = skipValue(b, i)
		if err := f(name, b[start:i]); err != nil {
			return err
		}
		i = skipSpace(b, i)
		if b[i] == '}' {
			return nil
		}
	}
}

func skipSpace(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n' {
		i++
	}
	return i
}

// skipValue returns where the value that starts at i ends.
func skipValue(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of a number before it
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}
