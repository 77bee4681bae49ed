package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"unicode/utf8"
)

// Content is an output that is not JSON: a text, a page, an image, a stream. In a WebSocket, whose messages are JSON, it becomes
// {"type": …, "text": …} or {"type": …, "base64": …}, and is bounded by Limits.MaxBody.
type Content struct {
	Type   string      // of the media, "text/html; charset=utf-8". "": application/octet-stream
	Status int         // of HTTP. 0: 200
	Header http.Header // more of them; nil: none
	Body   []byte

	// Stream is the body, if it is not nil. It is closed, if it can be, when it has been sent; who gets a Content from a
	// Client closes it.
	Stream io.Reader
}

// Text is a Content of plain text.
func Text(s string) Content { return Content{Type: "text/plain; charset=utf-8", Body: []byte(s)} }

// HTML is a Content of a page.
func HTML(s string) Content { return Content{Type: "text/html; charset=utf-8", Body: []byte(s)} }

// close closes the stream.
func (c *Content) close() {
	if s, ok := c.Stream.(io.Closer); ok {
		s.Close()
	}
}

// Read returns all of the body, of at most limit bytes, and closes the stream.
func (c *Content) Read(limit int64) ([]byte, error) {
	defer c.close()
	b := c.Body
	if c.Stream != nil {
		var err error
		if b, err = io.ReadAll(io.LimitReader(c.Stream, limit+1)); err != nil {
			return nil, err
		}
	}
	if int64(len(b)) > limit {
		return nil, errLong
	}
	return b, nil
}

var errLong = errors.New("content is longer than that")

// carried is a Content in a message.
type carried struct {
	Type   string `json:"type"`
	Text   string `json:"text,omitempty"`
	Base64 []byte `json:"base64,omitempty"`
}

func carry(contentType string, b []byte) carried {
	if utf8.Valid(b) {
		return carried{Type: contentType, Text: string(b)}
	}
	return carried{Type: contentType, Base64: b}
}

func (c carried) content() Content {
	b := c.Base64
	if b == nil {
		b = []byte(c.Text)
	}
	return Content{Type: c.Type, Body: b}
}

// Results is embedded in a struct whose fields are several results: {"result":[…]}, in their order.
type Results struct{}

var (
	contentType = reflect.TypeFor[Content]()
	resultsType = reflect.TypeFor[Results]()
)

// resultsOf returns the fields of t that are results, if t embeds Results.
func resultsOf(t reflect.Type) (fields []int, err error) {
	if t.Kind() != reflect.Struct {
		return nil, nil
	}
	several := false
	for i := range t.NumField() {
		switch f := t.Field(i); {
		case f.Anonymous && f.Type == resultsType:
			several = true
		case f.IsExported():
			fields = append(fields, i)
		}
	}
	if !several {
		return nil, nil
	}
	if len(fields) == 0 {
		return nil, fmt.Errorf("%v has no results", t)
	}
	return fields, nil
}

// encode makes JSON of an output. A list that is nil is an empty one.
func (m *Method) encode(out any) ([]byte, error) {
	if m.results != nil {
		v := reflect.ValueOf(out)
		list := make([]any, len(m.results))
		for i, f := range m.results {
			list[i] = v.Field(f).Interface()
		}
		return json.Marshal(list)
	}
	if m.out.Kind() == reflect.Slice && m.out.Elem().Kind() != reflect.Uint8 && reflect.ValueOf(out).IsNil() {
		if _, ok := out.(json.Marshaler); !ok {
			return []byte("[]"), nil
		}
	}
	return json.Marshal(out)
}

// decodeResult is the other direction of encode: b into out, a pointer.
func decodeResult(b []byte, out any) error {
	v := reflect.ValueOf(out).Elem()
	fields, err := resultsOf(v.Type())
	if err != nil || fields == nil {
		return json.Unmarshal(b, out)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	if len(list) != len(fields) {
		return fmt.Errorf("answer has %d results, want %d", len(list), len(fields))
	}
	for i, f := range fields {
		if err := json.Unmarshal(list[i], v.Field(f).Addr().Interface()); err != nil {
			return err
		}
	}
	return nil
}
