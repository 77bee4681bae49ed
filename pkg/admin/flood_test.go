package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/accesslog"
	"culvert.dev/pkg/auth"
)

// Nobody drives out of the audit log what others have done: neither those without a token, nor those who may do little.
func TestRefusalsDoNotFloodTheAudit(t *testing.T) {
	r := new(relay)
	h := r.handler(t)
	var err error
	if h.Audit, err = OpenAudit(accesslog.Config{Path: filepath.Join(t.TempDir(), "audit.log"), MaxSize: 100 << 20, Keep: 1}); err != nil {
		t.Fatal(err)
	}
	defer h.Audit.Close()
	defer h.Close()
	h.Audit.Record(AuditLine{Operator: "ann", Call: "sites/Revoke", Code: 200})
	ask := func(from, path, token string) {
		q := httptest.NewRequest("POST", "http://127.0.0.1"+path, strings.NewReader("{}"))
		q.Header.Set("Content-Type", "application/json")
		q.RemoteAddr = from
		if token != "" {
			q.Header.Set("Authorization", "Bearer "+token)
		}
		h.ServeHTTP(httptest.NewRecorder(), q)
	}
	viewer := tokens(t, h)[auth.Viewer]
	for i := range mostLines + 10 {
		ask(fmt.Sprintf("[2001:db8:%x::1]:1", i), "/api/"+strings.Repeat("a", 2<<10), "wrong")
		if i < 2*mostRefusals {
			ask("192.0.2.1:1", "/api/relay/Drain", viewer)
		}
	}
	all := h.Audit.Last(mostLines)
	if all[0].Operator != "ann" || all[0].Code != http.StatusOK {
		t.Errorf("%d lines of refusals, and what was done is gone", len(all))
	}
	for _, line := range all {
		if len(line.Call) > 200 {
			t.Fatalf("a call of %d bytes", len(line.Call))
		}
	}
	if n := len(all); n > 2*(mostRefusals+mostForeign)+1 { // a minute may end in between
		t.Errorf("%d lines", n)
	}
	if n := r.log.Len(); n > 1<<20 {
		t.Errorf("the log got %d bytes", n)
	}
}
