package rest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxAnswer bounds what a client reads of an answer, and of one event.
const maxAnswer = 64 << 20

// Client calls methods over HTTP. It may be used from several goroutines.
type Client struct {
	Base   *url.URL     // of the server with its prefix: http://127.0.0.1:7070/api/
	Header http.Header  // of each request, such as Authorization; nil: none
	HTTP   *http.Client // nil: http.DefaultClient
}

// do sends a call and returns its answer, if it is a success.
func (c *Client) do(ctx context.Context, name string, in any) (*http.Response, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	if string(body) == "null" {
		body = nil
	}
	u := *c.Base
	u.Path, u.RawPath, u.RawQuery, u.Fragment = "", "", "", ""
	target := u.String() + strings.TrimSuffix(c.Base.EscapedPath(), "/") + "/" + name
	res, err := c.send(ctx, http.MethodPost, target, body)
	if err != nil {
		return nil, err
	}
	if allow := res.Header.Get("Allow"); res.StatusCode == http.StatusMethodNotAllowed && allow != "" {
		res.Body.Close()
		verbs := strings.Split(strings.ReplaceAll(allow, " ", ""), ",")
		verb := verbs[0]
		if slices.Contains(verbs, http.MethodGet) {
			verb = http.MethodGet
			if target, err = withQuery(target, body); err != nil {
				return nil, err
			}
			body = nil
		}
		if res, err = c.send(ctx, verb, target, body); err != nil {
			return nil, err
		}
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	e := new(Error)
	if json.Unmarshal(b, e) != nil || e.Text == "" {
		return nil, &Error{res.StatusCode, "answered " + res.Status + ", and is no server of these methods"}
	}
	if e.Code == 0 {
		e.Code = res.StatusCode
	}
	return nil, e
}

func (c *Client) send(ctx context.Context, verb, target string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, verb, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range c.Header {
		req.Header[name] = values
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	return or(c.HTTP, http.DefaultClient).Do(req)
}

// withQuery puts the members of an object into the query of target.
func withQuery(target string, body []byte) (string, error) {
	if len(body) == 0 {
		return target, nil
	}
	q := url.Values{}
	err := members(body, func(name, value []byte) error {
		s := string(value)
		switch {
		case s == "null":
			return nil
		case value[0] == '"':
			if err := json.Unmarshal(value, &s); err != nil {
				return err
			}
		}
		q.Set(string(name), s)
		return nil
	})
	return target + "?" + q.Encode(), err
}

// Call implements Caller.
func (c *Client) Call(ctx context.Context, name string, in, out any) error {
	res, err := c.do(ctx, name, in)
	if err != nil {
		return err
	}
	if content, ok := out.(*Content); ok {
		*content = Content{Type: res.Header.Get("Content-Type"), Status: res.StatusCode, Header: res.Header, Stream: res.Body}
		return nil
	}
	defer res.Body.Close()
	if !isJSON(res, "application/json") {
		return fmt.Errorf("%s: the answer is %q, not JSON: is there another server at %s?", name, res.Header.Get("Content-Type"), c.Base)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("%s: the answer broke off: %w", name, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("%s: the answer is longer than %d bytes", name, maxAnswer)
	}
	if res.Header.Get(bareHeader) != "bare" {
		b = unwrap(b)
	}
	if err := decodeResult(b, out); err != nil {
		return fmt.Errorf("%s: unexpected answer: %w", name, err)
	}
	return nil
}

func isJSON(res *http.Response, want string) bool {
	t, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	return err == nil && t == want
}

// unwrap returns what is in {"result": …}, or b if it is something else.
func unwrap(b []byte) []byte {
	if !json.Valid(b) || b[0] != '{' {
		return b
	}
	n, in := 0, b
	members(b, func(name, value []byte) error {
		n++
		if string(name) == "result" {
			in = value
		}
		return nil
	})
	if n != 1 {
		return b
	}
	return in
}

// Follow implements Caller.
func (c *Client) Follow(ctx context.Context, name string, in any, each func(decode func(any) error) error) error {
	res, err := c.do(ctx, name, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if !isJSON(res, "application/x-ndjson") {
		return fmt.Errorf("%s: the answer is %q, not a feed", name, res.Header.Get("Content-Type"))
	}
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, maxAnswer)
	for sc.Scan() {
		b := sc.Bytes()
		if len(b) == 0 {
			continue
		}
		if e := lastLine(b); e != nil {
			return e
		}
		if err := each(func(out any) error { return json.Unmarshal(b, out) }); err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: the feed broke off: %w", name, err)
	}
	return nil
}

// lastLine returns the error that ends a feed, if b is one.
func lastLine(b []byte) *Error {
	if !bytes.HasPrefix(b, []byte(`{"errorCode":`)) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	e := new(Error)
	if d.Decode(e) != nil || e.Code == 0 {
		return nil
	}
	return e
}
