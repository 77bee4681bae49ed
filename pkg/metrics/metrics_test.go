package metrics

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"culvert.dev/pkg/relay/public"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full is a status that has something to tell of everything.
func full() public.Status {
	service := public.ServiceStatus{
		Name: "wiki", Visitors: 3, Total: 70, Received: 1000, Sent: 1 << 40,
		Datagrams: public.Datagrams{Received: 1, Sent: 2, Dropped: 3},
	}
	service.Requests[0][2], service.Requests[1][4], service.Requests[2][0] = 50, 6, 1
	service.Durations.Counts[0], service.Durations.Counts[2], service.Durations.Longer, service.Durations.Sum = 40, 15, 1, 90*time.Second
	gate := public.ServiceStatus{Name: "gate", Camera: &public.CameraStatus{
		Viewers: 2, Received: 21, Rate: 22, KeyFrame: time.UnixMilli(1500), Reconnects: 23, Dropped: 24,
		Tracks: []public.CameraTrack{{Media: "video", Codec: "H264", Width: 640, Height: 360}, {Media: "audio", Codec: "SOMETHING"}},
	}}
	yard := public.ServiceStatus{Name: "yard", Camera: new(public.CameraStatus)}
	boot := public.ServiceStatus{Name: "boot", TFTP: &public.TFTPStatus{Retransmitted: 32, Refused: 33, Cached: 34, Hits: 35}}
	tftp := new(public.TFTPPort)
	tftp.Running, tftp.Unproven, tftp.Total, tftp.Retransmitted, tftp.ErrorsSent, tftp.Dropped = 41, 42, 43, 44, 45, 46
	tftp.Refused.Limit = 47
	tftp.Cache.Bytes, tftp.Cache.Limit, tftp.Cache.Hits, tftp.Cache.Fetches, tftp.Cache.Evicted = 51, 52, 53, 54, 55
	st := public.Status{
		TFTP:     tftp,
		Visitors: 7, MaxVisitors: 100, MaxPerAddress: 10,
		Counters:   public.Counters{TurnedAway: 4, Prefaces: 5, Malformed: 6, HandshakesLimited: 17, Refused: 18},
		Handshakes: public.Handshakes{TLS12: 8, TLS13: 9},
		Lags:       []time.Duration{time.Millisecond, 2 * time.Millisecond},
		Traffic:    []public.Traffic{{Site: "office", Received: 11, Sent: 12, Dropped: 13}},
		Sessions: []public.SessionStatus{
			{
				Site: "office", Active: true, Streams: 2, Buffered: 100, Budget: 1000, Services: []public.ServiceStatus{service, gate, yard, boot},
				Links: []public.LinkStatus{{Transport: "wss", RTT: 30 * time.Millisecond}, {Transport: "wss", RTT: 20 * time.Millisecond}, {Transport: "quic"}},
			},
			{Site: "office", Streams: 1, Buffered: 1, Budget: 1000},
			{Site: "branch", Active: true, Lost: time.Unix(1, 0)},
		},
	}
	st.Handshakes.Failed[1] = 3
	for i, w := range public.Words {
		if w == "timeout" {
			st.Refused[i] = 14
			st.Sessions[0].Services[0].Errors[i] = 15
		}
	}
	return st
}

func config(st public.Status) Config {
	return Config{
		Status: func(context.Context) public.Status { return st },
		Sites:  func() []string { return []string{"office", "lab"} },
		Certificates: func() []Certificate {
			return []Certificate{{Name: "wiki.test", Expires: time.Unix(2e9, 0)}, {Name: "new.test", Failures: 2}}
		},
		LogDropped: func() uint64 { return 16 },
		Version:    "1.2.3",
	}
}

func get(t *testing.T, h http.Handler, timeout string) (int, string) {
	t.Helper()
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// What the relay counts is what a scrape tells.
func TestScrape(t *testing.T) {
	_, text := get(t, New(config(full())), "10")
	for _, want := range []string{
		`culvert_build_info{version="1.2.3"} 1`, `culvert_draining 0`, `culvert_visitors 7`, `culvert_visitors_limit 100`, `culvert_visitors_per_address_limit 10`,
		`culvert_turned_away_total 4`, `culvert_proxy_header_errors_total 5`, `culvert_malformed_responses_total 6`,
		`culvert_handshakes_total{version="1.2"} 8`, `culvert_handshakes_total{version="1.3"} 9`,
		`culvert_handshake_failures_total{reason="crowded"} 3`, `culvert_handshake_failures_total{reason="timeout"} 0`,
		`culvert_unserved_requests_total{reason="timeout"} 14`, `culvert_unserved_requests_total{reason="none"} 0`,
		`culvert_loop_lag_seconds{loop="1"} 0.002`, `culvert_loops_stuck 0`, `culvert_handshakes_limited_total 17`, `culvert_policy_refusals_total 18`, `culvert_access_log_dropped_lines_total 16`,
		`culvert_certificate_expiry_timestamp_seconds{name="wiki.test"} 2e+09`, `culvert_certificate_expiry_timestamp_seconds{name="new.test"} 0`,
		`culvert_certificate_failures{name="new.test"} 2`, `culvert_certificate_failures{name="wiki.test"} 0`,
		`culvert_site_up{site="office"} 1`, `culvert_site_up{site="branch"} 0`, `culvert_site_up{site="lab"} 0`,
		`culvert_site_sessions{site="office",state="active"} 1`, `culvert_site_sessions{site="office",state="standby"} 1`,
		`culvert_site_sessions{site="branch",state="suspended"} 1`, `culvert_site_sessions{site="lab",state="active"} 0`,
		`culvert_site_links{site="office",transport="wss"} 2`, `culvert_site_links{site="office",transport="quic"} 1`,
		`culvert_site_link_rtt_seconds{site="office",transport="wss"} 0.02`,
		`culvert_site_streams{site="office"} 3`, `culvert_site_buffered_bytes{site="office"} 101`, `culvert_site_buffer_budget_bytes{site="office"} 2000`,
		`culvert_site_received_bytes_total{site="office"} 11`, `culvert_site_sent_bytes_total{site="office"} 12`, `culvert_site_dropped_datagrams_total{site="office"} 13`,
		`culvert_service_visitors{service="wiki",site="office"} 3`, `culvert_service_visits_total{service="wiki",site="office"} 70`,
		`culvert_service_received_bytes_total{service="wiki",site="office"} 1000`, `culvert_service_sent_bytes_total{service="wiki",site="office"} 1.099511627776e+12`,
		`culvert_service_requests_total{code="2xx",protocol="http/1",service="wiki",site="office"} 50`,
		`culvert_service_requests_total{code="4xx",protocol="http/2",service="wiki",site="office"} 6`,
		`culvert_service_requests_total{code="none",protocol="http/3",service="wiki",site="office"} 1`,
		`culvert_service_errors_total{reason="timeout",service="wiki",site="office"} 15`,
		`culvert_service_request_duration_seconds_bucket{service="wiki",site="office",le="0.001"} 40`,
		`culvert_service_request_duration_seconds_bucket{service="wiki",site="office",le="0.003"} 40`,
		`culvert_service_request_duration_seconds_bucket{service="wiki",site="office",le="0.01"} 55`,
		`culvert_service_request_duration_seconds_bucket{service="wiki",site="office",le="100"} 55`,
		`culvert_service_request_duration_seconds_bucket{service="wiki",site="office",le="+Inf"} 56`,
		`culvert_service_request_duration_seconds_sum{service="wiki",site="office"} 90`,
		`culvert_service_received_datagrams_total{service="wiki",site="office"} 1`, `culvert_service_sent_datagrams_total{service="wiki",site="office"} 2`,
		`culvert_service_dropped_datagrams_total{service="wiki",site="office"} 3`,
		`culvert_camera_viewers{service="gate",site="office"} 2`, `culvert_camera_received_bytes_total{service="gate",site="office"} 21`,
		`culvert_camera_key_frame_timestamp_seconds{service="gate",site="office"} 1.5`, `culvert_camera_key_frame_timestamp_seconds{service="yard",site="office"} 0`,
		`culvert_camera_reconnects_total{service="gate",site="office"} 23`, `culvert_camera_dropped_frames_total{service="gate",site="office"} 24`,
		`culvert_camera_track_info{codec="H264",service="gate",site="office",track="0"} 1`, `culvert_camera_track_info{codec="other",service="gate",site="office",track="1"} 1`,
		`culvert_camera_width_pixels{service="gate",site="office",track="0"} 640`, `culvert_camera_height_pixels{service="gate",site="office",track="0"} 360`,
		`culvert_tftp_transfers 41`, `culvert_tftp_unproven_transfers 42`, `culvert_tftp_transfers_total 43`, `culvert_tftp_retransmitted_packets_total 44`,
		`culvert_tftp_sent_errors_total 45`, `culvert_tftp_dropped_datagrams_total 46`, `culvert_tftp_refusals_total{cause="limit"} 47`, `culvert_tftp_refusals_total{cause="policy"} 0`,
		`culvert_tftp_cache_bytes 51`, `culvert_tftp_cache_limit_bytes 52`, `culvert_tftp_cache_hits_total 53`, `culvert_tftp_cache_fetches_total 54`, `culvert_tftp_cache_evictions_total 55`,
		`culvert_files_retransmitted_packets_total{service="boot",site="office"} 32`, `culvert_files_refusals_total{service="boot",site="office"} 33`,
		`culvert_files_cached_bytes{service="boot",site="office"} 34`, `culvert_files_cache_hits_total{service="boot",site="office"} 35`,
		"go_goroutines ",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("missing: %s", want)
		}
	}
	for _, none := range []string{`reason=""`, `rtt_seconds{site="office",transport="quic"}`, `camera_viewers{service="wiki"`, `files_cached_bytes{service="wiki"`, `pixels{service="gate",site="office",track="1"}`, "An error has occurred"} {
		if strings.Contains(text, none) {
			t.Errorf("there is %s", none)
		}
	}
}

// The linter of Prometheus has nothing to say, and the manual has every metric of ours.
func TestConventions(t *testing.T) {
	_, text := get(t, New(config(full())), "10")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (culvert_\w+)`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(culvert_\\w+)`").FindAllStringSubmatch(string(manual), -1) {
		documented = append(documented, m[1])
	}
	slices.Sort(documented)
	if !slices.Equal(names, documented) {
		t.Errorf("metrics:\n%s\ndocs/operations.md:\n%s", strings.Join(names, "\n"), strings.Join(documented, "\n"))
	}
}

// A loop that is stuck is told of; counters that lack its part are not there, so that they do not seem to begin anew.
func TestStuck(t *testing.T) {
	st := full()
	st.Lags[1] = -1
	_, text := get(t, New(config(st)), "10")
	for want, there := range map[string]bool{"\nculvert_loops_stuck 1\n": true, "\nculvert_loop_lag_seconds{loop=\"0\"}": true, "culvert_turned_away_total": false, "culvert_service": false} {
		if strings.Contains(text, want) != there {
			t.Errorf("%q is there: %v", want, !there)
		}
	}
}

// The scraper says how long it waits, and nobody scrapes more than a few times at once.
func TestBounds(t *testing.T) {
	for timeout, want := range map[string]time.Duration{"1": 800 * time.Millisecond, "10": scrapeTime, "": scrapeTime, "-1": scrapeTime, "NaN": scrapeTime, "x": scrapeTime} {
		c := config(full())
		c.Status = func(ctx context.Context) public.Status {
			until, _ := ctx.Deadline()
			if left := time.Until(until); math.Abs((left - want).Seconds()) > 0.5 {
				t.Errorf("timeout %q: %v, want %v", timeout, left, want)
			}
			return full()
		}
		get(t, New(c), timeout)
	}

	c := config(full())
	begun, release := make(chan bool), make(chan bool)
	c.Status = func(context.Context) public.Status {
		begun <- true
		<-release
		return full()
	}
	h := New(c)
	codes := make(chan int)
	for range maxScrapes {
		go func() {
			code, _ := get(t, h, "10")
			codes <- code
		}()
		<-begun
	}
	if code, text := get(t, h, "10"); code != http.StatusServiceUnavailable {
		t.Errorf("one scrape more: %d %s", code, text)
	}
	close(release)
	for range maxScrapes {
		if code := <-codes; code != 200 {
			t.Errorf("status %d", code)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	st := full()
	one := st.Sessions[0].Services[0]
	for i := range 999 {
		one.Name = fmt.Sprint("service", i)
		st.Sessions[0].Services = append(st.Sessions[0].Services, one)
	}
	h := New(config(st))
	for b.Loop() {
		w := httptest.NewRecorder()
		w.Body = nil
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	}
}
