package public

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestProxy(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%s %s %s %s", req.Method, req.Host, req.URL, body)
		}))
		r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
		c := r.client()
		for i := range 20 {
			res, err := c.Get(fmt.Sprintf("https://app.test/p?q=%d", i))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if want := fmt.Sprintf("GET app.test /p?q=%d ", i); string(b) != want {
				t.Fatalf("got %q, want %q", b, want)
			}
			res, err = c.Post("https://app.test/p", "text/plain", struct{ io.Reader }{strings.NewReader("some body")})
			if err != nil {
				t.Fatal(err)
			}
			b, _ = io.ReadAll(res.Body)
			res.Body.Close()
			if want := "POST app.test /p some body"; string(b) != want {
				t.Fatalf("got %q, want %q", b, want)
			}
		}
	})
}
