package rest

import (
	"bytes"
	"embed"
	"encoding"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// docs is the page that shows the document: it asks nobody else for anything.
//
//go:embed docs
var docs embed.FS

// serveDocs serves the document and the page.
func (s *Server) serveDocs(w http.ResponseWriter, r *http.Request, path string) {
	h := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		s.refuse(w, Errorf(http.StatusMethodNotAllowed, "%s wants GET", path))
		return
	}
	if path == "openapi.json" {
		h.Set("Content-Type", "application/json")
		if t := s.table.Load(); t != nil {
			w.Write(t.document())
			return
		}
		w.Write(s.document(&table{}))
		return
	}
	types := map[string]string{
		"docs":          "text/html; charset=utf-8",
		"docs/page.js":  "text/javascript; charset=utf-8",
		"docs/page.css": "text/css; charset=utf-8",
		"docs/page.svg": "image/svg+xml",
	}
	typ, ok := types[path]
	if !ok {
		s.refuse(w, Errorf(http.StatusNotFound, "not found"))
		return
	}
	if path == "docs" {
		path = "docs/page.html"
	}
	b, err := docs.ReadFile(path)
	if err != nil {
		panic("BUG: rest: " + err.Error())
	}
	h.Set("Content-Type", typ)
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	w.Write(b)
}

type object = map[string]any

// A writer writes one document.
type writer struct {
	components object                  // schemas, by name
	names      map[typeIn]string       // of those
	used       map[string]reflect.Type // which type has a name
}

// typeIn is a type somewhere: what must be there, and what may be null, differs.
type typeIn struct {
	t  reflect.Type
	as role
}

type role uint8

const (
	result role = iota
	value       // of a parameter, or part of one
	input       // all parameters of a method
)

// document describes what is in t by OpenAPI 3.1.
func (s *Server) document(t *table) []byte {
	w := &writer{components: object{}, names: map[typeIn]string{}, used: map[string]reflect.Type{}}
	w.components["Error"] = object{
		"type":       "object",
		"required":   []string{"errorCode", "errorText"},
		"properties": object{"errorCode": object{"type": "integer", "description": "the HTTP status, as a rule"}, "errorText": object{"type": "string"}},
	}
	w.used["Error"] = reflect.TypeFor[Error]()
	w.names[typeIn{reflect.TypeFor[Error](), result}] = "Error"
	paths, tags := object{}, []object{}
	for _, root := range slices.Sorted(maps.Keys(t.services)) {
		e := t.services[root]
		tag := object{"name": root}
		if e.service.Doc != "" {
			tag["description"] = e.service.Doc
		}
		tags = append(tags, tag)
		for _, m := range e.service.Methods {
			path := s.prefix() + root + "/" + m.name
			if m.item != "" {
				path += "/{" + m.item + "}"
			}
			operations := object{}
			for _, verb := range m.verbs {
				operations[strings.ToLower(verb)] = w.operation(e.service, m, verb)
			}
			paths[path] = operations
		}
	}
	doc := object{
		"openapi": "3.1.0",
		"info":    object{"title": or(s.Title, "methods"), "version": or(s.Version, "0")},
		"servers": []object{{"url": "/"}},
		"paths":   paths,
		"tags":    tags,
		"components": object{
			"schemas": w.components,
			"responses": object{"Error": object{
				"description": "The call was refused, or has failed.",
				"content":     object{"application/json": object{"schema": ref("Error")}},
			}},
		},
	}
	if s.Bearer {
		doc["components"].(object)["securitySchemes"] = object{"bearer": object{"type": "http", "scheme": "bearer"}}
		doc["security"] = []object{{"bearer": []string{}}}
	}
	b := new(bytes.Buffer)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(doc); err != nil {
		panic("BUG: rest: " + err.Error())
	}
	return b.Bytes()
}

func ref(name string) object { return object{"$ref": "#/components/schemas/" + name} }

// operation describes how verb calls m.
func (w *writer) operation(service *Service, m *Method, verb string) object {
	id := service.Root + "_" + m.name
	// One of the verbs has the plain name: POST, which takes everything, if it is there.
	if main := m.verbs[0]; verb != main && !(verb == http.MethodPost) || verb == main && main != http.MethodPost && slices.Contains(m.verbs, http.MethodPost) {
		id += "_" + strings.ToLower(verb)
	}
	op := object{"operationId": id, "tags": []string{service.Root}}
	title, text, _ := strings.Cut(strings.TrimSpace(m.doc), "\n")
	if title != "" {
		op["summary"] = title
	}
	if m.push != nil {
		text = strings.TrimSpace(text + "\n\nA feed: one JSON value a line, for as long as the client stays. Over WebSocket it is a subscription.")
	}
	if m.needs != "" {
		op["x-needs"] = m.needs
		text = strings.TrimSpace(text + "\n\nNeeds: " + m.needs + ".")
	}
	if text = strings.TrimSpace(text); text != "" {
		op["description"] = text
	}
	params, inPath := []object{}, false
	body := verb != http.MethodGet && verb != http.MethodHead && verb != http.MethodDelete
	for i := range m.params.list {
		q := &m.params.list[i]
		switch {
		case q.inPath:
			inPath = true
			params = append(params, described(object{"name": m.item, "in": "path", "required": true, "schema": w.bounded(q)}, q.doc))
		case !body:
			p := described(object{"name": q.name, "in": "query", "required": q.required}, q.doc)
			switch schema := w.bounded(q); plain(q.t) {
			case true:
				p["schema"] = schema
			default: // as JSON
				p["content"] = object{"application/json": object{"schema": schema}}
			}
			params = append(params, p)
		}
	}
	if m.item != "" && !inPath {
		params = append(params, object{"name": m.item, "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	if body && len(m.params.list) > 0 && !(inPath && len(m.params.list) == 1) {
		schema, required := w.input(service, m)
		op["requestBody"] = object{"required": required, "content": object{"application/json": object{"schema": schema}}}
	}
	op["responses"] = object{"200": w.success(service, m), "default": object{"$ref": "#/components/responses/Error"}}
	return op
}

func described(o object, doc string) object {
	if doc != "" {
		o["description"] = doc
	}
	return o
}

// plain reports whether a parameter of that type stands in a query as it is: a scalar, or a list of them.
func plain(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if text, _ := own(t); text || t == timeType {
		return true
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Array, reflect.Interface:
		return false
	case reflect.Slice:
		return t.Elem().Kind() == reflect.Uint8 || plain(t.Elem()) && t.Elem().Kind() != reflect.Slice
	}
	return t != rawType
}

// input is the body of a call: the parameters that are not in the path.
func (w *writer) input(service *Service, m *Method) (schema object, required bool) {
	properties, need := object{}, []string{}
	rest := 0
	for i := range m.params.list {
		q := &m.params.list[i]
		if q.inPath {
			continue
		}
		rest++
		properties[q.name] = described(w.bounded(q), q.doc)
		if q.required {
			need = append(need, q.name)
		}
	}
	o := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(need) > 0 {
		o["required"] = need
	}
	name := exported(service.Root) + exported(m.name) + "Input"
	if t := m.params.t; t.Name() != "" && rest == len(m.params.list) {
		known := false
		if name, known = w.name(typeIn{t, input}); known {
			return ref(name), len(need) > 0
		}
	}
	w.components[name] = o
	return ref(name), len(need) > 0
}

// bounded is the schema of a parameter, with what its tags say.
func (w *writer) bounded(q *param) object {
	o := w.schema(q.t, true)
	if _, isRef := o["$ref"]; isRef {
		return o
	}
	low, high := "minimum", "maximum"
	t := q.t
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		low, high = "minLength", "maxLength"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() != reflect.Uint8 {
			low, high = "minItems", "maxItems"
		} else {
			low, high = "", "" // those of base64 are others
		}
	case reflect.Map:
		low, high = "minProperties", "maxProperties"
	}
	// What is left out or zero is not bounded, and a schema cannot say that of zero.
	if q.min != nil && low != "" && (q.required || q.def.IsValid()) {
		o[low] = *q.min
	}
	if q.max != nil && high != "" {
		o[high] = *q.max
	}
	if q.enum != nil {
		o["enum"] = q.enum
	}
	if q.def.IsValid() {
		if b, err := json.Marshal(q.def.Interface()); err == nil {
			o["default"] = json.RawMessage(b)
		}
	}
	return o
}

// success describes what m answers.
func (w *writer) success(service *Service, m *Method) object {
	description := "The result."
	var content object
	switch {
	case m.push != nil:
		description = "One event a line. A last line that is an Error says why there are no more."
		content = object{"application/x-ndjson": object{"schema": object{"type": "string"}, "x-event": w.schema(m.out, false)}}
	case m.out == contentType:
		content = object{"*/*": object{}}
	case m.results != nil:
		description = "The results."
		items := make([]object, len(m.results))
		for i, f := range m.results {
			items[i] = described(w.schema(m.out.Field(f).Type, false), m.out.Field(f).Tag.Get("doc"))
		}
		n := len(items)
		content = object{"application/json": object{"schema": wrapped(object{"type": "array", "prefixItems": items, "items": object{}, "minItems": n, "maxItems": n})}}
	default:
		schema := w.schema(m.out, false)
		if !service.Bare {
			schema = wrapped(schema)
		}
		content = object{"application/json": object{"schema": schema}}
	}
	return object{"description": description, "content": content}
}

func wrapped(schema object) object {
	return object{"type": "object", "required": []string{"result"}, "properties": object{"result": schema}}
}

// name returns the name of the schema of a type, and whether it is there.
func (w *writer) name(t typeIn) (name string, known bool) {
	if name, ok := w.names[t]; ok {
		return name, true
	}
	name = exported(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, t.t.Name()))
	switch t.as {
	case value:
		name += "Value"
	case input:
		name += "Input"
	}
	for base, n := name, 2; w.used[name] != nil; n++ {
		name = base + strconv.Itoa(n)
	}
	w.names[t], w.used[name] = name, t.t
	return name, false
}

func exported(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// schema is that of a type, as a parameter or a part of one (in), or as a result.
func (w *writer) schema(t reflect.Type, in bool) object {
	switch t {
	case timeType:
		return object{"type": "string", "format": "date-time"}
	case durationType:
		return object{"type": "integer", "format": "int64", "description": "nanoseconds"}
	case rawType:
		return object{}
	}
	p := reflect.PointerTo(t)
	switch {
	case p.Implements(jsonType) || p.Implements(reflect.TypeFor[json.Marshaler]()):
		if in && p.Implements(textType) || !in && p.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
			return object{"type": "string"} // as a rule, of those that have both
		}
		return object{}
	case in && p.Implements(textType), !in && p.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Int8, reflect.Int16, reflect.Int32:
		return object{"type": "integer", "format": "int32"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.Uint8, reflect.Uint16:
		return object{"type": "integer", "format": "int32", "minimum": 0}
	case reflect.Uint32:
		return object{"type": "integer", "format": "int64", "minimum": 0}
	case reflect.Uint, reflect.Uint64, reflect.Uintptr:
		return object{"type": "integer", "format": "uint64", "minimum": 0}
	case reflect.Float32:
		return object{"type": "number", "format": "float"}
	case reflect.Float64:
		return object{"type": "number", "format": "double"}
	case reflect.Pointer:
		return w.schema(t.Elem(), in)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "format": "byte", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": w.schema(t.Elem(), in)}
	case reflect.Array:
		return object{"type": "array", "items": w.schema(t.Elem(), in), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": w.schema(t.Elem(), in)}
	case reflect.Struct:
		return w.structure(t, in)
	}
	return object{}
}

// structure is the schema of a struct: a component, if the struct has a name.
func (w *writer) structure(t reflect.Type, in bool) object {
	name := ""
	if t.Name() != "" {
		var known bool
		as := result
		if in {
			as = value
		}
		if name, known = w.name(typeIn{t, as}); known {
			return ref(name)
		}
	}
	properties, required := object{}, []string{}
	w.fields(t, in, properties, &required)
	o := object{"type": "object", "properties": properties}
	if in {
		o["additionalProperties"] = false
	} else if len(required) > 0 {
		o["required"] = required
	}
	if name == "" {
		return o
	}
	w.components[name] = o
	return ref(name)
}

// fields adds the fields of a struct, as encoding/json sees them.
func (w *writer) fields(t reflect.Type, in bool, properties object, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" && opts == "" {
			continue
		}
		if f.Anonymous && tag == "" {
			e := f.Type
			if e.Kind() == reflect.Pointer {
				e = e.Elem()
			}
			if e.Kind() == reflect.Struct {
				w.fields(e, in, properties, required)
				continue
			}
		}
		if !f.IsExported() {
			continue
		}
		name := or(tag, f.Name)
		schema := w.schema(f.Type, in)
		optional := false
		for o := range strings.SplitSeq(opts, ",") {
			switch o {
			case "omitempty", "omitzero":
				optional = true
			case "string":
				schema = object{"type": "string"}
			}
		}
		if !in && !optional {
			*required = append(*required, name)
			switch f.Type.Kind() {
			case reflect.Pointer, reflect.Slice, reflect.Map:
				schema = nullable(schema)
			}
		}
		properties[name] = described(schema, f.Tag.Get("doc"))
	}
}

// nullable allows null, too.
func nullable(schema object) object {
	if t, ok := schema["type"].(string); ok {
		schema["type"] = []string{t, "null"}
		return schema
	}
	if len(schema) == 0 {
		return schema
	}
	return object{"anyOf": []object{schema, {"type": "null"}}}
}
