package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/legacy"
	_ "github.com/oapi-codegen/runtime" // of the client that is generated
)

func document(t *testing.T, s *Server) (*openapi3.T, []byte) {
	t.Helper()
	w := askFor(s, "GET", "/api/openapi.json", "")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
		t.Fatal(w.Code, w.Header())
	}
	doc, err := openapi3.NewLoader().LoadFromData(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, w.Body)
	}
	return doc, w.Body.Bytes()
}

// TestDocument has the document validated, and then questions and answers by the document.
func TestDocument(t *testing.T) {
	s, _ := newServer(t)
	s.Bearer = true
	doc, b := document(t, s)
	if !strings.Contains(string(b), `"openapi": "3.1.0"`) {
		t.Error("is not 3.1.0")
	}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, target, body string
		bad                  bool // by the document, as it is by the server
	}{
		{"GET", "/api/calc/Sum?a=3.12&b=4.2", "", false},
		{"GET", "/api/calc/Sum?a=3.12", "", true},
		{"GET", "/api/calc/Sum?a=3.12&b=x", "", true},
		{"POST", "/api/calc/Sum", `{"a":3.12,"b":4.2}`, false},
		{"POST", "/api/calc/Sum", `{"a":3.12,"b":"4.2"}`, true},
		{"POST", "/api/calc/Sum", `{"a":3.12,"b":1,"c":1}`, true},
		{"GET", "/api/calc/Divide?x=7&y=2", "", false},
		{"GET", "/api/calc/List", "", false},
		{"GET", "/api/bare/Point?x=1&y=2", "", false},
		{"GET", "/api/calc/Get/a", "", false},
		{"POST", "/api/calc/Set/17", `{"note":"n"}`, false},
		{"POST", "/api/calc/Set/x", `{}`, true},
		{"GET", `/api/calc/Every?int=1&uint=2&float=0.5&text=t&bool=true&list=a&list=b&point={"x":1,"y":2}`, "", false},
		{"POST", "/api/calc/Every", `{"int":1,"uint":1,"float":1,"text":"a","bool":true,"bytes":"/+8=","time":"2026-11-23T00:00:00Z","points":[{"x":1}],"any":{"a":[]},"map":{"a":1}}`, false},
		{"POST", "/api/calc/Every", `{"int":1,"uint":1,"float":1,"text":"a","bool":true,"kind":"sctp"}`, true},
		{"POST", "/api/calc/Every", `{"int":1,"uint":1,"float":1,"text":"a","bool":true,"limit":1001}`, true},
		{"POST", "/api/calc/Every", `{"int":1,"uint":1,"float":1,"text":"a","bool":true,"point":{"z":1}}`, true},
		{"GET", "/api/calc/Missing", "", false},
		{"GET", "/api/calc/Panic", "", false},
		{"GET", "/api/calc/Count?to=3", "", false},
	} {
		r := httptest.NewRequest(test.method, strings.NewReplacer(`{"`, `%7B%22`, `":`, `%22%3A`, `,"`, `%2C%22`, `}`, `%7D`).Replace(test.target), strings.NewReader(test.body))
		if test.body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		route, params, err := router.FindRoute(r)
		if err != nil {
			t.Errorf("%s %s: %v", test.method, test.target, err)
			continue
		}
		in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route,
			Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}}
		err = openapi3filter.ValidateRequest(t.Context(), in)
		if (err != nil) != test.bad {
			t.Errorf("%s %s %s: %v", test.method, test.target, test.body, err)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if test.bad != (w.Code == 400) {
			t.Errorf("%s %s %s: %d %s", test.method, test.target, test.body, w.Code, w.Body)
		}
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: w.Code, Header: w.Header(), Body: io.NopCloser(w.Body)}
		if strings.Contains(w.Header().Get("Content-Type"), "json") && !strings.Contains(w.Header().Get("Content-Type"), "ndjson") {
			if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
				t.Errorf("%s %s: answer: %v", test.method, test.target, err)
			}
		}
	}

	// Another set of services has another document.
	s.Remove("calc")
	if doc, _ := document(t, s); doc.Paths.Find("/api/calc/Sum") != nil || doc.Paths.Find("/api/bare/Point") == nil {
		t.Error("the document is an old one")
	}
}

// TestAwkwardTypes has a document for what is seldom.
func TestAwkwardTypes(t *testing.T) {
	type tree struct {
		Name     string           `json:"name"`
		Children []*tree          `json:"children"`
		Parent   *tree            `json:"parent"`
		By       map[string]*tree `json:"by,omitempty"`
		Pair     [2]int           `json:"pair"`
		Raw      json.RawMessage  `json:"raw"`
		Number   json.Number      `json:"number,omitempty"`
	}
	s := &Server{}
	s.Set(&Service{Root: "a", Methods: []*Method{
		Of("Tree", func(_ context.Context, in tree) (*tree, error) { return &in, nil }),
		Of("Generic", func(_ context.Context, in generic[point]) (generic[generic[int]], error) { panic(0) }),
		Of("Nothing", func(_ context.Context, in struct{}) (struct{}, error) { return in, nil }, Verbs("DELETE")),
		Of("Any", func(_ context.Context, in struct{ V any }) (any, error) { return in.V, nil }, Path("{v}")),
		Feed("Error", func(_ context.Context, in struct{}, send func(Error) error) error { return nil }),
	}})
	w := askFor(s, "GET", "/openapi.json", "")
	doc, err := openapi3.NewLoader().LoadFromData(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, w.Body)
	}
	if got := ask(s, "POST", "/a/Tree", `{"name":"a","children":[{"name":"b"}],"parent":null,"pair":[1,2],"raw":{"x":1}}`); got !=
		`200 {"result":{"name":"a","children":[{"name":"b","children":null,"parent":null,"pair":[0,0],"raw":null}],"parent":null,"pair":[1,2],"raw":{"x":1}}}` {
		t.Error(got)
	}
}

type generic[T any] struct {
	V T `json:"v"`
}

// TestMistakes wants what cannot be served refused where it is made.
func TestMistakes(t *testing.T) {
	f := func(_ context.Context, in struct{}) (int, error) { return 0, nil }
	for name, make := range map[string]func(){
		"is no struct":          func() { Of("A", func(_ context.Context, in int) (int, error) { return 0, nil }) },
		"cannot be a parameter": func() { Of("A", func(_ context.Context, in struct{ C chan int }) (int, error) { return 0, nil }) },
		"two parameters":        func() { Of("A", func(_ context.Context, in struct{ AB, Ab int }) (int, error) { return 0, nil }) },
		"a name has":            func() { Of("a/b", f) },
		"want one element":      func() { Of("A", f, Path("id")) },
		"default": func() {
			Of("A", func(_ context.Context, in struct {
				N int `default:"x"`
			}) (int, error) {
				return 0, nil
			})
		},
		"want at least": func() {
			Of("A", func(_ context.Context, in struct {
				N int `default:"1" min:"2"`
			}) (int, error) {
				return 0, nil
			})
		},
		"neither size": func() {
			Of("A", func(_ context.Context, in struct {
				N bool `min:"2"`
			}) (int, error) {
				return 0, nil
			})
		},
		"is no text": func() {
			Of("A", func(_ context.Context, in struct {
				N int `enum:"2"`
			}) (int, error) {
				return 0, nil
			})
		},
		"has no results":  func() { Of("A", func(_ context.Context, in struct{}) (noResults, error) { return noResults{}, nil }) },
		"events are JSON": func() { Feed("A", func(_ context.Context, in struct{}, send func(Content) error) error { return nil }) },
		"two methods":     func() { new(Server).Set(&Service{Root: "r", Methods: []*Method{Of("A", f), Of("A", f)}}) },
		"root":            func() { new(Server).Set(&Service{Root: "ws"}) },
		"is bare": func() {
			new(Server).Set(&Service{Root: "r", Bare: true, Methods: []*Method{Of("A", func(_ context.Context, in struct{}) (quotient, error) { return quotient{}, nil })}})
		},
	} {
		func() {
			defer func() {
				if v := fmt.Sprint(recover()); !strings.Contains(v, name) {
					t.Errorf("%s: %s", name, v)
				}
			}()
			make()
		}()
	}
}

type noResults struct{ Results }

// TestGeneratedClient has a client of these services made by another tool, and used.
func TestGeneratedClient(t *testing.T) {
	s, _ := newServer(t)
	_, b := document(t, s)
	dir := t.TempDir()
	spec := filepath.Join(dir, "openapi.json")
	if err := os.WriteFile(spec, b, 0o600); err != nil {
		t.Fatal(err)
	}
	generated := filepath.Join(dir, "generated.go")
	tool, err := filepath.Abs("../../.ci/bin/oapi-codegen")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tool); err != nil {
		t.Fatalf("%v: make test builds it", err)
	}
	if out, err := exec.Command(tool, "-generate", "types,client", "-package", "main", "-o", generated, spec).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The program that uses it is in testdata/client; what was generated joins it without being written there.
	here, err := filepath.Abs("testdata/client")
	if err != nil {
		t.Fatal(err)
	}
	overlay, _ := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "generated.go"): generated}})
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "client")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./testdata/client").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	web := httptest.NewServer(s)
	defer web.Close()
	var stdout bytes.Buffer
	cmd := exec.Command(program, web.URL)
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	want := `POST Sum 7.32
GET Sum 7.32
Divide [3 1]
Point 1 2
Set 17 n
Every [a b] 100 2026-11-23 true
Missing 404 there is no such thing
`
	if stdout.String() != want {
		t.Errorf("got\n%swant\n%s", &stdout, want)
	}
}

// TestPage has the page with what belongs to it, and nothing from elsewhere.
func TestPage(t *testing.T) {
	s, _ := newServer(t)
	for path, typ := range map[string]string{"docs": "text/html", "docs/page.js": "text/javascript", "docs/page.css": "text/css", "docs/page.svg": "image/svg+xml"} {
		w := askFor(s, "GET", "/api/"+path, "")
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), typ) || !strings.HasPrefix(w.Header().Get("Content-Security-Policy"), "default-src 'self'") {
			t.Error(path, w.Code, w.Header())
		}
		if strings.Contains(strings.ReplaceAll(w.Body.String(), "http://www.w3.org/2000/svg", ""), "://") {
			t.Error(path, "names another server")
		}
	}
	for path, want := range map[string]int{"docs/page.html": 404, "docs/../rest.go": 404, "docs/": 404} {
		if w := askFor(s, "GET", "/api/"+path, ""); w.Code != want {
			t.Error(path, w.Code)
		}
	}
	if w := askFor(s, "POST", "/api/docs", ""); w.Code != 405 {
		t.Error(w.Code)
	}
	s.NoDocs = true
	for _, path := range []string{"docs", "openapi.json", "docs/page.js"} {
		if w := askFor(s, "GET", "/api/"+path, ""); w.Code != http.StatusNotFound {
			t.Error(path, w.Code)
		}
	}
}
