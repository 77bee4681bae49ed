package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually waits for what comes by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

type terms struct {
	A float64 `json:"a" doc:"the first term"`
	B float64 `json:"b"`
}

type point struct {
	X int `json:"x"`
	Y int `json:"y"`
}

type every struct {
	Int    int8              `json:"int"`
	Uint   uint16            `json:"uint"`
	Float  float32           `json:"float"`
	Text   string            `json:"text"`
	Bool   bool              `json:"bool"`
	Time   time.Time         `json:"time,omitzero"`
	Wait   time.Duration     `json:"wait,omitempty"`
	Bytes  []byte            `json:"bytes,omitempty"`
	Point  point             `json:"point,omitzero"`
	List   []string          `json:"list,omitempty"`
	Points []point           `json:"points,omitempty"`
	Map    map[string]int    `json:"map,omitempty"`
	Opt    *int              `json:"opt"`
	Addr   netip.Addr        `json:"addr,omitzero"`
	Any    any               `json:"any,omitempty"`
	Hidden string            `json:"-"`
	Limit  int               `json:"limit" default:"100" min:"1" max:"1000"`
	Kind   string            `json:"kind,omitempty" enum:"tcp,udp"`
	Name   string            `json:"name,omitempty" min:"2" max:"4"`
	Header map[string]string `json:"header,omitempty"`
}

type quotient struct {
	Results
	Quotient  int
	Remainder int
}

type item struct {
	ID   int    `json:"id"`
	Note string `json:"note,omitempty"`
}

type count struct {
	To   int    `json:"to"`
	Fail string `json:"fail,omitempty"`
}

func services() []*Service {
	return []*Service{
		{Root: "calc", Doc: "A calculator.", Methods: []*Method{
			Of("Sum", func(_ context.Context, in terms) (float64, error) { return in.A + in.B, nil }, Doc("Adds two numbers.\nThat is all.")),
			Of("Divide", func(_ context.Context, in point) (quotient, error) {
				if in.Y == 0 {
					return quotient{}, errors.New("division by zero")
				}
				return quotient{Quotient: in.X / in.Y, Remainder: in.X % in.Y}, nil
			}),
			Of("Every", func(_ context.Context, in every) (every, error) { return in, nil }),
			Of("List", func(_ context.Context, in struct{}) ([]string, error) { return nil, nil }),
			Of("Panic", func(_ context.Context, in struct{}) (int, error) { panic("secret") }),
			Of("Missing", func(_ context.Context, in struct{}) (int, error) {
				return 0, Errorf(404, "there is no %s", "such thing")
			}),
			Of("Odd", func(_ context.Context, in struct{}) (int, error) { return 0, Errorf(1234, "odd") }),
			Of("Internal", func(_ context.Context, in struct{}) (int, error) { return 0, Internal(errors.New("secret file")) }),
			Of("Unencodable", func(_ context.Context, in struct{}) (any, error) { return func() {}, nil }),
			Of("Set", func(_ context.Context, in item) (item, error) { return in, nil }, Changes(), Path("{id}"), Needs("admin")),
			Of("Get", func(ctx context.Context, in struct{}) (string, error) { return CallOf(ctx).ID, nil }, Path("{name}"), Verbs("GET")),
			Of("Text", func(_ context.Context, in struct{}) (Content, error) { return Text("plain <b>"), nil }),
			Of("Page", func(_ context.Context, in struct{}) (Content, error) { return HTML("<h1>page</h1>"), nil }),
			Of("Binary", func(_ context.Context, in struct{}) (Content, error) { return Content{Body: []byte{0, 0xff}}, nil }),
			Of("Stream", func(_ context.Context, in struct{}) (Content, error) {
				return Content{Type: "text/csv", Status: 203, Header: http.Header{"X-Rows": {"2"}}, Stream: strings.NewReader("1\n2\n")}, nil
			}),
			Feed("Count", func(_ context.Context, in count, send func(int) error) error {
				for i := range in.To {
					if err := send(i); err != nil {
						return err
					}
				}
				if in.Fail != "" {
					return Errorf(409, "%s", in.Fail)
				}
				return nil
			}),
			Feed("Forever", func(ctx context.Context, in struct{}, send func(int) error) error {
				<-ctx.Done()
				return ctx.Err()
			}),
		}},
		{Root: "bare", Bare: true, Methods: []*Method{
			Of("Point", func(_ context.Context, in point) (point, error) { return in, nil }),
			Of("Result", func(_ context.Context, in struct{}) (map[string]int, error) { return map[string]int{"result": 1}, nil }),
			Of("Who", func(ctx context.Context, in struct{}) (string, error) {
				c := CallOf(ctx)
				return fmt.Sprint(c.Service, " ", c.Method, " ", c.Identity, " ", c.Transport, " ", c.UserAgent, " ", c.Remote.IsValid(), " ", c.Header.Get("X-Test")), nil
			}),
		}},
	}
}

func newServer(t testing.TB) (*Server, *bytes.Buffer) {
	log := new(bytes.Buffer)
	s := &Server{Prefix: "/api/", Title: "test", Version: "1", Log: slog.New(slog.NewTextHandler(log, nil))}
	s.Set(services()...)
	t.Cleanup(func() { s.Close() })
	return s, log
}

// ask makes a request and returns the answer: status, a space, body.
func ask(s *Server, method, target, body string, header ...string) string {
	w := askFor(s, method, target, body, header...)
	return fmt.Sprintf("%d %s", w.Code, strings.TrimSuffix(w.Body.String(), "\n"))
}

func askFor(s *Server, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func TestHTTP(t *testing.T) {
	s, log := newServer(t)
	for _, test := range []struct{ method, target, body, want string }{
		{"GET", "/api/calc/Sum?a=3.12&b=4.2", "", `200 {"result":7.32}`},
		{"GET", "/api/calc/Sum?B=1e1&A=-2", "", `200 {"result":8}`},
		{"POST", "/api/calc/Sum", `{"a":3.12,"b":4.2}`, `200 {"result":7.32}`},
		{"POST", "/api/calc/Sum", ` { "A" : 1 , "\u0062":2 } `, `200 {"result":3}`},
		{"POST", "/api/calc/Sum?a=1", `{"b":2}`, `200 {"result":3}`},
		{"GET", "/api/calc/Divide?x=7&y=2", "", `200 {"result":[3,1]}`},
		{"GET", "/api/calc/Divide?x=7&y=0", "", `400 {"errorCode":400,"errorText":"division by zero"}`},
		{"GET", "/api/calc/List", "", `200 {"result":[]}`},
		{"GET", "/api/bare/Point?x=1&y=2", "", `200 {"x":1,"y":2}`},
		{"GET", "/api/calc/Get/a%2Fb", "", `200 {"result":"a/b"}`},
		{"GET", "/api/calc/Get", "", `200 {"result":""}`},
		{"POST", "/api/calc/Set/17", "", `200 {"result":{"id":17}}`},
		{"POST", "/api/calc/Set", `{"id":18,"note":"n"}`, `200 {"result":{"id":18,"note":"n"}}`},

		// What is wrong is named.
		{"GET", "/api/calc/Sum?a=1", "", `400 {"errorCode":400,"errorText":"parameter \"b\": is missing"}`},
		{"POST", "/api/calc/Sum", `{"a":1,"b":null}`, `400 {"errorCode":400,"errorText":"parameter \"b\": is missing"}`},
		{"GET", "/api/calc/Sum?a=x&b=1", "", `400 {"errorCode":400,"errorText":"parameter \"a\": want a number, not \"x\""}`},
		{"GET", "/api/calc/Sum?a=NaN&b=1", "", `400 {"errorCode":400,"errorText":"parameter \"a\": want a number, not \"NaN\""}`},
		{"GET", "/api/calc/Sum?a=1e999&b=1", "", `400 {"errorCode":400,"errorText":"parameter \"a\": 1e999 is out of range"}`},
		{"GET", "/api/calc/Sum?a=1&b=1&c=1", "", `400 {"errorCode":400,"errorText":"unknown parameter \"c\": there are a, b"}`},
		{"GET", "/api/calc/Sum?a=1&a=2&b=1", "", `400 {"errorCode":400,"errorText":"parameter \"a\": is given twice"}`},
		{"GET", "/api/calc/Sum?a=1&A=2&b=1", "", `400 {"errorCode":400,"errorText":"parameter \"a\": is given twice"}`},
		{"POST", "/api/calc/Sum?a=1", `{"a":1,"b":1}`, `400 {"errorCode":400,"errorText":"parameter \"a\": is given twice"}`},
		{"POST", "/api/calc/Sum", `{"a":1,"a":1,"b":1}`, `400 {"errorCode":400,"errorText":"parameter \"a\": is given twice"}`},
		{"POST", "/api/calc/Sum", `{"a":"1","b":1}`, `400 {"errorCode":400,"errorText":"parameter \"a\": want a number, not a text"}`},
		{"POST", "/api/calc/Sum", `[1,2]`, `400 {"errorCode":400,"errorText":"want the parameters as a JSON object"}`},
		{"POST", "/api/calc/Sum", `{"a":1,`, `400 {"errorCode":400,"errorText":"the body is no JSON: unexpected end of JSON input"}`},
		{"POST", "/api/calc/Set/x", "", `400 {"errorCode":400,"errorText":"parameter \"id\": want a whole number, not \"x\""}`},
		{"GET", "/api/calc/Sum?a=%zz", "", `400 {"errorCode":400,"errorText":"malformed query"}`},

		// What is not there.
		{"GET", "/api/nope/Sum", "", `404 {"errorCode":404,"errorText":"no service \"nope\""}`},
		{"GET", "/api/calc/Nope", "", `404 {"errorCode":404,"errorText":"service calc has no method \"Nope\""}`},
		{"GET", "/api/calc/sum", "", `404 {"errorCode":404,"errorText":"service calc has no method \"sum\": is it Sum?"}`},
		{"GET", "/api/calc/Sum/17", "", `404 {"errorCode":404,"errorText":"nothing is behind calc/Sum"}`},
		{"GET", "/calc/Sum", "", `404 {"errorCode":404,"errorText":"not found: the services are below /api/"}`},
		{"GET", "/api/calc/Missing", "", `404 {"errorCode":404,"errorText":"there is no such thing"}`},
		{"GET", "/api/calc/Odd", "", `400 {"errorCode":1234,"errorText":"odd"}`},

		// What is ours to know.
		{"GET", "/api/calc/Panic", "", `500 {"errorCode":500,"errorText":"internal server error"}`},
		{"GET", "/api/calc/Internal", "", `500 {"errorCode":500,"errorText":"internal server error"}`},
		{"GET", "/api/calc/Unencodable", "", `500 {"errorCode":500,"errorText":"internal server error"}`},
	} {
		if got := ask(s, test.method, test.target, test.body); got != test.want {
			t.Errorf("%s %s %s\n got %s\nwant %s", test.method, test.target, test.body, got, test.want)
		}
	}
	for _, want := range []string{"panic=secret", `error="secret file"`, "stack=", "unsupported type"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
}

func TestVerbsAndTypes(t *testing.T) {
	s, _ := newServer(t)
	w := askFor(s, "DELETE", "/api/calc/Sum", "")
	if w.Code != 405 || w.Header().Get("Allow") != "GET, POST, HEAD" {
		t.Errorf("DELETE: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	w = askFor(s, "GET", "/api/calc/Set/1", "")
	if w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET of what changes: %d, Allow %q", w.Code, w.Header().Get("Allow"))
	}
	if w = askFor(s, "OPTIONS", "/api/calc/Sum", ""); w.Code != 204 || w.Header().Get("Allow") == "" {
		t.Errorf("OPTIONS: %d", w.Code)
	}
	for _, typ := range []string{"application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", ";"} {
		if got := ask(s, "POST", "/api/calc/Sum", "a=1&b=2", "Content-Type", typ); !strings.HasPrefix(got, "415 ") {
			t.Errorf("%s: %s", typ, got)
		}
	}
	if got := ask(s, "POST", "/api/calc/Sum", `{"a":1,"b":1}`, "Content-Type", "application/json; charset=utf-8"); got != `200 {"result":2}` {
		t.Error(got)
	}
	for target, want := range map[string]string{
		"Text":   "200 text/plain; charset=utf-8 plain <b>",
		"Page":   "200 text/html; charset=utf-8 <h1>page</h1>",
		"Binary": "200 application/octet-stream \x00\xff",
		"Stream": "203 text/csv 1\n2\n",
	} {
		w := askFor(s, "GET", "/api/calc/"+target, "")
		if got := fmt.Sprint(w.Code, " ", w.Header().Get("Content-Type"), " ", w.Body); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", target, w.Header())
		}
	}
	// A page elsewhere changes nothing.
	for origin, want := range map[string]string{"https://evil.example": "403", "null": "403", "http://example.com": "200", "http://EXAMPLE.com": "200"} {
		if got := ask(s, "POST", "/api/calc/Set/1", "", "Origin", origin); !strings.HasPrefix(got, want) {
			t.Errorf("Origin %s: %s", origin, got)
		}
	}
}

func TestParameters(t *testing.T) {
	s, _ := newServer(t)
	rest := "&int=1&uint=2&float=0.5&text=t&bool=1"
	for query, want := range map[string]string{
		"int=-128&uint=65535&float=1e-3&text=%C3%A4&bool=TRUE": `"int":-128,"uint":65535,"float":0.001,"text":"ä","bool":true`,
		"time=2026-11-23T01:02:03%2B02:00" + rest:              `"time":"2026-11-23T01:02:03+02:00"`,
		"time=2026-11-23" + rest:                               `"time":"2026-11-23T00:00:00Z"`,
		"wait=1m30s" + rest:                                    `"wait":90000000000`,
		"bytes=_-8" + rest:                                     `"bytes":"/+8="`,
		"point={%22x%22:1,%22y%22:2}" + rest:                   `"point":{"x":1,"y":2}`,
		"list=a&list=b" + rest:                                 `"list":["a","b"]`,
		"list=[%22a%22]" + rest:                                `"list":["a"]`,
		"points={%22x%22:1}&points={%22y%22:1}" + rest:         `"points":[{"x":1,"y":0},{"x":0,"y":1}]`,
		"map={%22a%22:1}" + rest:                               `"map":{"a":1}`,
		"opt=5" + rest:                                         `"opt":5`,
		"opt=" + rest:                                          `"opt":null`,
		"addr=::1" + rest:                                      `"addr":"::1"`,
		"any=x" + rest:                                         `"any":"x"`,
		"any=[1]" + rest:                                       `"any":[1]`,
		"limit=0" + rest:                                       `"limit":100`,
		"limit=1000&kind=udp&name=%C3%A4%C3%A4%C3%A4" + rest:   `"limit":1000,"kind":"udp","name":"äää"`,
	} {
		if got := ask(s, "GET", "/api/calc/Every?"+query, ""); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for query, want := range map[string]string{
		"int=128":                `"int": 128 is out of range`,
		"int=1.5":                `"int": want a whole number, not "1.5"`,
		"uint=-1":                `"uint": want a whole number, not "-1"`,
		"float=0x1p-2":           `"float": want a number`,
		"float=1_000":            `"float": want a number`,
		"text=%ff":               `"text": is not UTF-8`,
		"bool=yes":               `"bool": want true or false, not "yes"`,
		"time=noon":              `"time": want a time such as`,
		"bytes=!":                `"bytes": want bytes in base64`,
		"point={":                `"point": want JSON`,
		"point=[]":               `"point": array does not fit`,
		`point={"z":1}`:          `"point": malformed: unknown field "z"`,
		`point={"x":"1"}`:        `"point": string does not fit in "x"`,
		"addr=1.2.3":             `"addr": malformed`,
		"limit=1001":             `"limit": want at most 1000`,
		"limit=-1":               `"limit": want at least 1`,
		"kind=sctp":              `"kind": want one of tcp, udp, not "sctp"`,
		"name=a":                 `"name": want at least 2 long`,
		"name=abcde":             `"name": want at most 4 long`,
		"hidden=1":               `unknown parameter "hidden"`,
		"opt=x":                  `"opt": want a whole number`,
		strings.Repeat("x", 100): `unknown parameter "` + strings.Repeat("x", 64) + `"`,
	} {
		name, value, _ := strings.Cut(query, "=")
		q := url.Values{"int": {"1"}, "uint": {"2"}, "float": {"0.5"}, "text": {"t"}, "bool": {"1"}}
		if value, _ := url.QueryUnescape(value); true {
			q.Set(name, value)
		}
		got := ask(s, "GET", "/api/calc/Every?"+q.Encode(), "")
		if !strings.HasPrefix(got, "400 ") || !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), want) {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	if got := ask(s, "POST", "/api/calc/Every", `{"int":1,"uint":1,"float":1,"text":"a\n\u00e4","bool":true,"bytes":"/+8","time":"2026-11-23T00:00:00Z","points":[{"x":1}],"any":{"a":[]}}`); !strings.Contains(got, `"text":"a\nä","bool":true,"time":"2026-11-23T00:00:00Z","bytes":"/+8=","point"`) && !strings.HasPrefix(got, "200") {
		t.Error(got)
	}
}

func TestBodyLimit(t *testing.T) {
	s, _ := newServer(t)
	s.SetLimits(Limits{MaxBody: 20})
	if got := ask(s, "POST", "/api/calc/Sum", `{"a":1,"b":2        }`); !strings.HasPrefix(got, "413 ") {
		t.Error(got)
	}
	if got := ask(s, "POST", "/api/calc/Sum", `{"a":1,"b":2       }`); got != `200 {"result":3}` {
		t.Error(got)
	}
}

func TestPrefix(t *testing.T) {
	for prefix, path := range map[string]string{"": "/", "/": "/", "/api": "/api/", "api": "/api/", "/a/b/": "/a/b/"} {
		s := &Server{Prefix: prefix}
		s.Set(services()...)
		if got := ask(s, "GET", path+"calc/Sum?a=1&b=2", ""); got != `200 {"result":3}` {
			t.Errorf("%q: %s", prefix, got)
		}
		if w := askFor(s, "GET", path+"openapi.json", ""); !strings.Contains(w.Body.String(), `"`+path+`calc/Sum"`) {
			t.Errorf("%q: the document has other paths", prefix)
		}
	}
}

// TestBusy has one call too many, of each kind.
func TestBusy(t *testing.T) {
	s, _ := newServer(t)
	s.SetLimits(Limits{MaxCalls: 1, HTTPFeeds: 1, CallTimeout: time.Minute})
	begun, goOn := make(chan bool), make(chan bool)
	s.Set(&Service{Root: "slow", Methods: []*Method{
		Of("Wait", func(context.Context, struct{}) (int, error) {
			begun <- true
			<-goOn
			return 1, nil
		}),
		Feed("Feed", func(_ context.Context, _ struct{}, send func(int) error) error {
			begun <- true
			<-goOn
			return nil
		}),
	}})
	got := make(chan string)
	for _, method := range []string{"Wait", "Feed"} {
		go func() { got <- ask(s, "GET", "/api/slow/"+method, "") }()
		<-begun
		w := askFor(s, "GET", "/api/slow/"+method, "")
		if w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Error(method, w.Code, w.Header())
		}
	}
	// In process nobody is turned away.
	if sum, err := Invoke[float64](t.Context(), s.Local(nil), "calc/Sum", terms{1, 2}); err != nil || sum != 3 {
		t.Error(sum, err)
	}
	close(goOn)
	<-got
	<-got
	if got := ask(s, "GET", "/api/calc/Sum?a=1&b=2", ""); got != `200 {"result":3}` {
		t.Error(got)
	}
}

// FuzzParameters wants what a query or a body makes of the parameters to come back the same, and no panic.
func FuzzParameters(f *testing.F) {
	f.Add("int=1&uint=2&float=0.5&text=t&bool=1&list=a&list=b&point=%7B%22x%22:1%7D", "")
	f.Add("", `{"int":1,"uint":1,"float":1,"text":"a\n","bool":true,"bytes":"/+8","time":"2026-11-23T00:00:00Z","points":[{"x":1}],"any":{"a":[]},"map":{"a":1}}`)
	f.Add("wait=1h&addr=%3A%3A1&opt=", ` { "INT" : -1 , "\u0075int":2, "float": 1e-300,"text":"","bool":false,"limit":0,"header":{"}":"{"} } `)
	p, err := paramsOf(reflect.TypeFor[every](), "")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, query, body string) {
		g := new(given)
		g.query, _ = url.ParseQuery(query)
		if json.Valid([]byte(body)) {
			g.body = []byte(body)
			names := 0
			if members(g.body, func(name, value []byte) error {
				names++
				if !json.Valid(value) {
					t.Errorf("%q: member %q is %q", body, name, value)
				}
				return nil
			}) == nil {
				var m map[string]json.RawMessage
				if json.Unmarshal(g.body, &m); len(m) > names {
					t.Errorf("%q: %d members, want %d", body, names, len(m))
				}
			}
		}
		var in, again every
		if g.into(p, &in) != nil {
			return
		}
		b, err := json.Marshal(in)
		if err != nil {
			return // a year beyond 9999
		}
		if err := (&given{body: b}).into(p, &again); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if c, _ := json.Marshal(again); string(c) != string(b) {
			t.Errorf("%s became %s", b, c)
		}
	})
}

// TestReplaced has a method replaced while a call of it is under way.
func TestReplaced(t *testing.T) {
	s, _ := newServer(t)
	begun, goOn := make(chan bool), make(chan bool)
	s.Set(&Service{Root: "hot", Methods: []*Method{Of("V", func(context.Context, struct{}) (int, error) {
		begun <- true
		<-goOn
		return 1, nil
	})}})
	got := make(chan string)
	go func() { got <- ask(s, "GET", "/api/hot/V", "") }()
	<-begun
	s.Set(&Service{Root: "hot", Methods: []*Method{Of("V", func(context.Context, struct{}) (int, error) { return 2, nil })}})
	if v := ask(s, "GET", "/api/hot/V", ""); v != `200 {"result":2}` {
		t.Error(v)
	}
	close(goOn)
	if v := <-got; v != `200 {"result":1}` {
		t.Error(v)
	}
	s.Remove("hot")
	if v := ask(s, "GET", "/api/hot/V", ""); !strings.HasPrefix(v, "404 ") {
		t.Error(v)
	}
	log := new(bytes.Buffer)
	s.SetLog(slog.New(slog.NewTextHandler(log, nil)))
	ask(s, "GET", "/api/calc/Panic", "")
	if !strings.Contains(log.String(), "secret") {
		t.Error("the new logger was not told")
	}
}

func TestAdmitAndDone(t *testing.T) {
	s, _ := newServer(t)
	var done []string
	s.Admit = func(ctx context.Context, c *Call) error {
		if c.Needs == "admin" && c.Header.Get("Authorization") != "Bearer right" {
			return Errorf(401, "log in")
		}
		c.Identity = "ann"
		return nil
	}
	s.Done = func(c *Call, in any, err error, took time.Duration) {
		if c.Identity == nil {
			in = fmt.Sprint(in, ", tried ", c.Tried())
		}
		done = append(done, fmt.Sprint(c.Service, "/", c.Method, " ", c.Identity, " ", in, " ", err))
	}
	ask(s, "POST", "/api/calc/Set/1", "")
	ask(s, "POST", "/api/calc/Set/1", "nonsense")
	ask(s, "POST", "/api/calc/Set/1", "", "Authorization", "Bearer right")
	ask(s, "GET", "/api/calc/Sum?a=x", "")
	ask(s, "GET", "/api/calc/Panic", "")
	want := []string{
		"calc/Set <nil> <nil>, tried {1 } log in",
		"calc/Set <nil> <nil>, tried <nil> log in",
		"calc/Set ann {1 } <nil>",
		`calc/Sum ann <nil> parameter "a": want a number, not "x"`,
		"calc/Panic ann {} internal server error",
	}
	if fmt.Sprint(done) != fmt.Sprint(want) {
		t.Errorf("got %q", done)
	}
}

// onLoop serves s by package httpd and returns its address.
func onLoop(t testing.TB, s *Server) string {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	srv := &httpd.Server{Handler: s}
	ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *evloop.Conn) {
		srv.Serve(c, c.Loop(), httpd.Peer{Addr: c.RemoteAddr()})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		core.Close()
		srv.Wait()
	})
	return ln.Addr().String()
}

func dial(t testing.TB, addr string) *Socket {
	k, err := DialWebSocket(t.Context(), "ws://"+addr+"/api/ws", http.Header{"X-Test": {"h"}, "User-Agent": {"tester"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return k
}

// callers runs f with every kind of caller.
func callers(t *testing.T, f func(t *testing.T, s *Server, c Caller)) {
	t.Run("local", func(t *testing.T) {
		s, _ := newServer(t)
		f(t, s, s.Local(nil))
	})
	t.Run("http", func(t *testing.T) {
		s, _ := newServer(t)
		web := httptest.NewServer(s)
		defer web.Close()
		base, _ := url.Parse(web.URL + "/api/")
		f(t, s, &Client{Base: base, Header: http.Header{"X-Test": {"h"}}, HTTP: web.Client()})
	})
	t.Run("http on a loop", func(t *testing.T) {
		s, _ := newServer(t)
		base, _ := url.Parse("http://" + onLoop(t, s) + "/api")
		client := &http.Client{Transport: new(http.Transport)}
		defer client.CloseIdleConnections()
		f(t, s, &Client{Base: base, HTTP: client})
	})
	t.Run("websocket", func(t *testing.T) {
		s, _ := newServer(t)
		web := httptest.NewServer(s)
		defer web.Close()
		f(t, s, dial(t, web.Listener.Addr().String()))
	})
	t.Run("websocket on a loop", func(t *testing.T) {
		s, _ := newServer(t)
		f(t, s, dial(t, onLoop(t, s)))
	})
}

func TestCallers(t *testing.T) {
	callers(t, func(t *testing.T, s *Server, c Caller) {
		ctx := t.Context()
		if sum, err := Invoke[float64](ctx, c, "calc/Sum", terms{3.12, 4.2}); err != nil || sum != 7.32 {
			t.Error(sum, err)
		}
		// Other types than the method's, if they fit.
		if sum, err := Invoke[float32](ctx, c, "calc/Sum", map[string]int{"a": 1, "b": 2}); err != nil || sum != 3 {
			t.Error(sum, err)
		}
		if _, err := Invoke[string](ctx, c, "calc/Sum", terms{}); err == nil {
			t.Error("a number is no text")
		}
		if q, err := Invoke[quotient](ctx, c, "calc/Divide", point{7, 2}); err != nil || q.Quotient != 3 || q.Remainder != 1 {
			t.Error(q, err)
		}
		if p, err := Invoke[point](ctx, c, "bare/Point", point{1, 2}); err != nil || p != (point{1, 2}) {
			t.Error(p, err)
		}
		if m, err := Invoke[map[string]int](ctx, c, "bare/Result", struct{}{}); err != nil || m["result"] != 1 {
			t.Error(m, err)
		}
		if id, err := Invoke[string](ctx, c, "calc/Get/a%2Fb", struct{}{}); err != nil || id != "a/b" {
			t.Error(id, err)
		}
		if i, err := Invoke[item](ctx, c, "calc/Set/5", struct{}{}); err != nil || i.ID != 5 {
			t.Error(i, err)
		}
		if e, err := Invoke[every](ctx, c, "calc/Every", every{Kind: "tcp"}); err != nil || e.Limit != 100 {
			t.Error(e, err)
		}
		for name, want := range map[string]Error{
			"calc/Missing":  {404, "there is no such thing"},
			"calc/Odd":      {1234, "odd"},
			"calc/Panic":    {500, "internal server error"},
			"calc/Internal": {500, "internal server error"},
			"calc/Nope":     {404, `service calc has no method "Nope"`},
		} {
			_, err := Invoke[int](ctx, c, name, struct{}{})
			var e *Error
			if !errors.As(err, &e) || *e != want {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := Invoke[every](ctx, c, "calc/Every", every{Kind: "sctp"}); err == nil || !strings.Contains(err.Error(), "want one of") {
			t.Error(err)
		}
		page, err := Invoke[Content](ctx, c, "calc/Page", struct{}{})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := page.Read(100); err != nil || string(b) != "<h1>page</h1>" || !strings.HasPrefix(page.Type, "text/html") {
			t.Errorf("%s %q %v", page.Type, b, err)
		}
		stream, err := Invoke[Content](ctx, c, "calc/Stream", struct{}{})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := stream.Read(100); err != nil || string(b) != "1\n2\n" {
			t.Errorf("%q %v", b, err)
		}
	})
}

func TestFeeds(t *testing.T) {
	callers(t, func(t *testing.T, s *Server, c Caller) {
		ctx := t.Context()
		var got []int
		for n, err := range Follow[int](ctx, c, "calc/Count", count{To: 3}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, n)
		}
		if fmt.Sprint(got) != "[0 1 2]" {
			t.Error(got)
		}
		var last error
		n := 0
		for _, err := range Follow[int](ctx, c, "calc/Count", count{To: 3, Fail: "broken"}) {
			n, last = n+1, err
		}
		if e := new(Error); n != 4 || !errors.As(last, &e) || *e != (Error{409, "broken"}) {
			t.Error(n, last)
		}
		// Who has enough leaves.
		for n, err := range Follow[int](ctx, c, "calc/Count", count{To: 1 << 40}) {
			if err != nil {
				t.Fatal(err)
			}
			if n == 10 {
				break
			}
		}
		for _, err := range Follow[int](ctx, c, "calc/Count", map[string]string{"to": "x"}) {
			if e := new(Error); !errors.As(err, &e) || e.Code != 400 {
				t.Error(err)
			}
		}
		forever, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		for _, err := range Follow[int](forever, c, "calc/Forever", struct{}{}) {
			if !errors.Is(err, context.DeadlineExceeded) && err.Error() != "took too long" {
				t.Error(err)
			}
		}
		// A server that closes ends them.
		ended := make(chan error)
		go func() {
			var last error
			for _, err := range Follow[int](ctx, c, "calc/Forever", struct{}{}) {
				last = err
			}
			ended <- last
		}()
		eventually(t, "the feed", func() bool { return s.feeds.Load() > 0 })
		s.Close()
		var e *Error
		var lost *LostError
		if err := <-ended; (!errors.As(err, &e) || e.Code != 403 && e.Code != 503) && !errors.As(err, &lost) {
			t.Error(err)
		}
	})
}

// TestNotOurs has a client meet another server.
func TestNotOurs(t *testing.T) {
	for answer, want := range map[string]string{
		"200 text/html <p>hello":                        "not JSON",
		"404 text/plain not found":                      "no server of these methods",
		`500 application/json {"error":"x"}`:            "no server of these methods",
		`200 application/json {"status":"ok"}`:          "unexpected answer",
		`200 application/json nonsense`:                 "unexpected answer",
		`418 application/json {"errorText":"a teapot"}`: "a teapot",
	} {
		status, rest, _ := strings.Cut(answer, " ")
		typ, body, _ := strings.Cut(rest, " ")
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", typ)
			code := 0
			fmt.Sscan(status, &code)
			w.WriteHeader(code)
			io.WriteString(w, body)
		}))
		base, _ := url.Parse(web.URL)
		_, err := Invoke[[]int](t.Context(), &Client{Base: base}, "a/B", struct{}{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", answer, err, want)
		}
		web.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}
