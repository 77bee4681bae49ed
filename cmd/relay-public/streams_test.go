package main

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
)

// What goes on in the relay is in the API: here of a relay without a site, whose visitors find nothing.
func TestInsight(t *testing.T) {
	in := start(t, t.TempDir(), basic)
	c := in.client()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	follow, stop := context.WithCancel(ctx)
	followed := make(chan admin.Request, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for q, err := range c.FollowRequests(follow, admin.Filter{}) {
			if err != nil {
				return
			}
			select {
			case followed <- q:
			case <-follow.Done(): // more of them than anybody takes
			}
		}
	}()
	defer func() { stop(); <-ended }()

	visitor := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer visitor.CloseIdleConnections()
	var q admin.Request
	for q.Path == "" { // until the feed has begun
		res, err := visitor.Get("https://" + in.ready["https"].(string) + "/nothing?token=secret")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		select {
		case q = <-followed:
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no request was fed")
		}
	}
	if q.Path != "/nothing" || q.Status != 404 || q.Word != "not-found" || q.Method != "GET" || q.ID == "" || q.Site != "" {
		t.Errorf("got %+v", q)
	}
	list, err := c.Requests(ctx, admin.Filter{Limit: 1})
	if err != nil || len(list) != 1 || list[0].Path != "/nothing" {
		t.Errorf("got %+v, %v", list, err)
	}
	_, err = c.Request(ctx, q.ID)
	wantCode(t, err, http.StatusNotFound)
	_, err = c.Replay(ctx, q.ID)
	wantCode(t, err, http.StatusNotFound)

	streams, err := c.Streams(ctx, admin.Filter{})
	if err != nil || len(streams) != 0 {
		t.Errorf("got %+v, %v", streams, err)
	}
	visitors, err := c.Visitors(ctx, admin.Limit{})
	if err != nil || len(visitors) != 0 {
		t.Errorf("got %+v, %v", visitors, err)
	}
	err = c.KickStream(ctx, "c123")
	wantCode(t, err, http.StatusNotFound)
	if err == nil || !strings.Contains(err.Error(), "tunnelctl streams") {
		t.Errorf("got %v, which does not say what to do", err)
	}
	wantCode(t, c.KickSession(ctx, "abcdef"), http.StatusNotFound)

	past, err := c.History(ctx, admin.Span{Span: 60})
	if err != nil || past.Step != 1 || len(past.In) != 60 || time.Since(past.Start) > 2*time.Minute {
		t.Errorf("got %+v, %v", past, err)
	}

	lines, err := c.Logs(ctx, admin.Lines{})
	if err != nil || len(lines) == 0 {
		t.Fatalf("got %+v, %v", lines, err)
	}
	found := false
	for _, l := range lines {
		found = found || l.Message == "ready" && l.Level == "INFO" && l.Attrs["https"] == in.ready["https"]
	}
	if !found {
		t.Errorf("the ready line is missing in %+v", lines)
	}
	for l, err := range c.FollowLogs(ctx, admin.Lines{Lines: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Message == "" {
			t.Errorf("got %+v", l)
		}
		break
	}
}
