// Package metrics tells Prometheus what a public relay does.
//
//	http.Handle("/metrics", metrics.New(metrics.Config{Status: relay.Status, Sites: names, Version: version}))
//
// # Invariants
//
//   - What is counted is counted on the event loops, in plain fields. A scrape asks each loop once, waits no longer than
//     the scraper does, and leaves out what a loop that is stuck would have told.
//   - Labels are names of sites, services and certificates, and words of closed sets: nothing that visitors choose makes
//     a series.
//   - The names are in docs/operations.md; a test holds both together.
package metrics

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"culvert.dev/pkg/relay/public"
)

const (
	// scrapeTime is how long a scrape may take; less if the scraper says that it waits for less.
	scrapeTime = 5 * time.Second

	// maxScrapes is how many there may be at once.
	maxScrapes = 4
)

// Config is what New takes.
type Config struct {
	// Status is that of the relay. Required.
	Status func(context.Context) public.Status

	// Sites returns the names of all sites that the relay knows, connected or not. Required.
	Sites func() []string

	// Certificates returns those that the relay has or wants. If nil, there is nothing to tell of them.
	Certificates func() []Certificate

	// LogDropped returns how many lines the access log has lost. If nil, there is no such log.
	LogDropped func() uint64

	// Version is that of the program.
	Version string
}

// Certificate is one of the relay's.
type Certificate struct {
	Name     string
	Expires  time.Time // zero: there is none yet
	Failures int       // attempts to get or renew it that failed, since the last one that did not
}

// Handler serves the metrics.
type Handler struct {
	config  Config
	process prometheus.Gatherer
	busy    chan struct{} // of maxScrapes
}

// New returns a handler.
func New(c Config) *Handler {
	own := prometheus.NewRegistry()
	own.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Handler{config: c, process: own, busy: make(chan struct{}, maxScrapes)}
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case h.busy <- struct{}{}:
		defer func() { <-h.busy }()
	default:
		http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
		return
	}
	wait := scrapeTime
	if s, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64); err == nil && s > 0 && s < wait.Seconds() {
		wait = time.Duration(s * 0.8 * float64(time.Second)) // the rest is for the way
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	relay := prometheus.NewRegistry()
	relay.MustRegister(&scrape{ctx, &h.config})
	promhttp.HandlerFor(prometheus.Gatherers{h.process, relay}, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
}

// metric is a desc and its type.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

func define(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("culvert_"+name, help, labels, nil), kind}
}

var (
	buildInfo  = define(gauge, "build_info", "1, with the version of the program.", "version")
	draining   = define(gauge, "draining", "1 while the relay shuts down.")
	visitors   = define(gauge, "visitors", "Connections of visitors that are open.")
	maxVisitor = define(gauge, "visitors_limit", "How many connections of visitors may be open.")
	maxAddress = define(gauge, "visitors_per_address_limit", "How many of them may be of one address.")
	turnedAway = define(counter, "turned_away_total", "Connections and flows beyond a limit, which were closed or told to come back.")
	prefaces   = define(counter, "proxy_header_errors_total", "Connections of proxies without a valid PROXY protocol header.")
	handshakes = define(counter, "handshakes_total", "TLS handshakes over TCP that came about, by version.", "version")
	failed     = define(counter, "handshake_failures_total", "TLS handshakes over TCP that did not, by reason.", "reason")
	limited    = define(counter, "handshakes_limited_total", "Connections closed before a TLS handshake, as their address had too many.")
	refused    = define(counter, "policy_refusals_total", "Requests, connections and datagrams that the policy of a service did not let in.")
	unserved   = define(counter, "unserved_requests_total", "Requests that were for no service and that the relay answered by itself, by reason; none is a redirect.", "reason")
	malformed  = define(counter, "malformed_responses_total", "Answers of targets that are not HTTP.")
	loopLag    = define(gauge, "loop_lag_seconds", "How long an event loop took to answer this scrape.", "loop")
	loopsStuck = define(gauge, "loops_stuck", "Event loops that did not answer this scrape; what they count is missing.")
	logDropped = define(counter, "access_log_dropped_lines_total", "Lines of the access log that could not be written.")
	expires    = define(gauge, "certificate_expiry_timestamp_seconds", "When a certificate expires; 0 while there is none.", "name")
	failures   = define(gauge, "certificate_failures", "Attempts to get or renew a certificate that failed, since the last one that did not.", "name")

	tftpRunning   = define(gauge, "tftp_transfers", "Transfers by TFTP that are under way.")
	tftpUnproven  = define(gauge, "tftp_unproven_transfers", "Of those: from addresses that have not answered yet, and may be forged.")
	tftpTotal     = define(counter, "tftp_transfers_total", "Transfers by TFTP that have begun.")
	tftpRefused   = define(counter, "tftp_refusals_total", "Requests by TFTP that were refused, by cause.", "cause")
	tftpAgain     = define(counter, "tftp_retransmitted_packets_total", "Packets of TFTP that were sent once more.")
	tftpErrors    = define(counter, "tftp_sent_errors_total", "ERROR packets of TFTP that were sent.")
	tftpDropped   = define(counter, "tftp_dropped_datagrams_total", "Datagrams of TFTP that were not answered, or not sent: there were too many, or they made no sense.")
	tftpCached    = define(gauge, "tftp_cache_bytes", "Bytes of files that are kept for clients of TFTP.")
	tftpCacheMost = define(gauge, "tftp_cache_limit_bytes", "Bytes that may be.")
	tftpHits      = define(counter, "tftp_cache_hits_total", "Files that had not to come from the site, as they were kept or just on their way.")
	tftpFetches   = define(counter, "tftp_cache_fetches_total", "Files that came from the site.")
	tftpEvicted   = define(counter, "tftp_cache_evictions_total", "Files that were given up for others.")

	siteUp       = define(gauge, "site_up", "1 while visitors of a site are served: a private relay is connected.", "site")
	siteSessions = define(gauge, "site_sessions", "Private relays of a site, by state: active, standby, suspended (without a link) or leaving.", "site", "state")
	siteLinks    = define(gauge, "site_links", "Links of a site, by transport.", "site", "transport")
	siteRTT      = define(gauge, "site_link_rtt_seconds", "Round trip of the best link of a site, by transport.", "site", "transport")
	siteStreams  = define(gauge, "site_streams", "Streams of a site that are open.", "site")
	siteReceived = define(counter, "site_received_bytes_total", "Bytes of streams that came from a site.", "site")
	siteSent     = define(counter, "site_sent_bytes_total", "Bytes of streams that went to a site, those that were sent again included.", "site")
	siteDropped  = define(counter, "site_dropped_datagrams_total", "Datagrams for a site that came faster than its links take them, or while there was none.", "site")
	siteBuffered = define(gauge, "site_buffered_bytes", "Memory that the streams of a site take here.", "site")
	siteBudget   = define(gauge, "site_buffer_budget_bytes", "Memory that they may take.", "site")

	svcVisitors  = define(gauge, "service_visitors", "Requests, connections and flows of a service that are under way.", "site", "service")
	svcVisits    = define(counter, "service_visits_total", "Requests, connections and flows of a service that have begun.", "site", "service")
	svcReceived  = define(counter, "service_received_bytes_total", "Bytes from visitors, but for the heads of requests. Connections count while they run.", "site", "service")
	svcSent      = define(counter, "service_sent_bytes_total", "Bytes to visitors. Connections count while they run.", "site", "service")
	svcRequests  = define(counter, "service_requests_total", "Requests that are over, by version of HTTP and class of status; none is a visitor who went away before.", "site", "service", "protocol", "code")
	svcErrors    = define(counter, "service_errors_total", "What went wrong with requests, connections and flows, by the reason that the access log gives, too.", "site", "service", "reason")
	svcDuration  = define(counter, "service_request_duration_seconds", "From the head of a request to the end of it and its response.", "site", "service")
	svcDatagrams = define(counter, "service_received_datagrams_total", "Datagrams from visitors.", "site", "service")
	svcAnswers   = define(counter, "service_sent_datagrams_total", "Datagrams to visitors.", "site", "service")
	svcDropped   = define(counter, "service_dropped_datagrams_total", "Datagrams of visitors that were lost at the port: there was a limit, or a full buffer.", "site", "service")

	filesAgain   = define(counter, "files_retransmitted_packets_total", "Packets of TFTP that were sent once more.", "site", "service")
	filesRefused = define(counter, "files_refusals_total", "Requests by TFTP that were not admitted.", "site", "service")
	filesCached  = define(gauge, "files_cached_bytes", "Bytes of its files that are kept.", "site", "service")
	filesHits    = define(counter, "files_cache_hits_total", "Files that were read and had not to come from the site.", "site", "service")

	camViewers    = define(gauge, "camera_viewers", "Who play a camera.", "site", "service")
	camReceived   = define(counter, "camera_received_bytes_total", "Bytes of pictures and sound that came from the site.", "site", "service")
	camKeyFrame   = define(gauge, "camera_key_frame_timestamp_seconds", "When the last key frame came; 0 if none has.", "site", "service")
	camReconnects = define(counter, "camera_reconnects_total", "How often the stream that viewers share has begun again, because the camera or the site was away.", "site", "service")
	camDropped    = define(counter, "camera_dropped_frames_total", "Frames that were left out for viewers who are slow.", "site", "service")
	camTrack      = define(gauge, "camera_track_info", "1 for each track of a camera, by its last description.", "site", "service", "track", "codec")
	camWidth      = define(gauge, "camera_width_pixels", "Of the picture of a track.", "site", "service", "track")
	camHeight     = define(gauge, "camera_height_pixels", "Of the picture of a track.", "site", "service", "track")
)

// scrape is the collector of one scrape.
type scrape struct {
	ctx    context.Context
	config *Config
}

// Describe describes nothing: what a scrape has is checked when it is there.
func (s *scrape) Describe(chan<- *prometheus.Desc) {}

func (s *scrape) Collect(c chan<- prometheus.Metric) {
	tell := func(m metric, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
	}
	st := s.config.Status(s.ctx)
	tell(buildInfo, 1, s.config.Version)
	tell(draining, number(st.Draining))
	tell(visitors, float64(st.Visitors))
	tell(maxVisitor, float64(st.MaxVisitors))
	tell(maxAddress, float64(st.MaxPerAddress))
	stuck := 0
	for i, lag := range st.Lags {
		if lag < 0 {
			stuck++
			continue
		}
		tell(loopLag, lag.Seconds(), strconv.Itoa(i))
	}
	tell(loopsStuck, float64(stuck))
	if s.config.LogDropped != nil {
		tell(logDropped, float64(s.config.LogDropped()))
	}
	if s.config.Certificates != nil {
		for _, one := range s.config.Certificates() {
			at := 0.0
			if !one.Expires.IsZero() {
				at = float64(one.Expires.Unix())
			}
			tell(expires, at, one.Name)
			tell(failures, float64(one.Failures), one.Name)
		}
	}
	if stuck > 0 {
		return // a counter that lacks a part has not begun anew
	}
	tell(turnedAway, float64(st.Counters.TurnedAway))
	tell(limited, float64(st.Counters.HandshakesLimited))
	tell(refused, float64(st.Counters.Refused))
	tell(prefaces, float64(st.Counters.Prefaces))
	tell(malformed, float64(st.Counters.Malformed))
	tell(handshakes, float64(st.Handshakes.TLS12), "1.2")
	tell(handshakes, float64(st.Handshakes.TLS13), "1.3")
	for i, n := range st.Handshakes.Failed {
		tell(failed, float64(n), public.HandshakeTroubles[i])
	}
	for i, n := range st.Refused {
		tell(unserved, float64(n), cmp.Or(public.Words[i], "none"))
	}
	if st.TFTP != nil {
		collectTFTP(tell, st.TFTP)
	}
	collectSites(tell, &st, s.config.Sites())
	for _, one := range st.Sessions {
		for i := range one.Services {
			collectService(c, tell, one.Site, &one.Services[i])
		}
	}
}

// site is what the sessions of a site come to.
type site struct {
	up                        bool
	states, links             map[string]int
	rtt                       map[string]time.Duration
	streams, buffered, budget int
}

func collectSites(tell func(metric, float64, ...string), st *public.Status, names []string) {
	sites := make(map[string]*site)
	of := func(name string) *site {
		if sites[name] == nil {
			sites[name] = &site{
				states: map[string]int{"active": 0, "standby": 0, "suspended": 0, "leaving": 0}, links: map[string]int{"wss": 0, "quic": 0},
				rtt: make(map[string]time.Duration),
			}
		}
		return sites[name]
	}
	for _, name := range names {
		of(name)
	}
	for i := range st.Sessions {
		one := &st.Sessions[i]
		s := of(one.Site)
		state := "standby"
		switch {
		case !one.Lost.IsZero():
			state = "suspended"
		case one.Leaving:
			state = "leaving"
		case one.Active:
			state = "active"
		}
		s.states[state]++
		s.up = s.up || one.Active && one.Lost.IsZero()
		s.streams += one.Streams
		s.buffered += one.Buffered
		s.budget += one.Budget
		for _, l := range one.Links {
			s.links[l.Transport]++
			if best, known := s.rtt[l.Transport]; l.RTT > 0 && (!known || l.RTT < best) {
				s.rtt[l.Transport] = l.RTT
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sites)) {
		s := sites[name]
		tell(siteUp, number(s.up), name)
		for state, n := range s.states {
			tell(siteSessions, float64(n), name, state)
		}
		for transport, n := range s.links {
			tell(siteLinks, float64(n), name, transport)
		}
		for transport, d := range s.rtt {
			tell(siteRTT, d.Seconds(), name, transport)
		}
		tell(siteStreams, float64(s.streams), name)
		tell(siteBuffered, float64(s.buffered), name)
		tell(siteBudget, float64(s.budget), name)
	}
	for _, t := range st.Traffic {
		tell(siteReceived, float64(t.Received), t.Site)
		tell(siteSent, float64(t.Sent), t.Site)
		tell(siteDropped, float64(t.Dropped), t.Site)
	}
}

func collectService(c chan<- prometheus.Metric, tell func(metric, float64, ...string), site string, s *public.ServiceStatus) {
	tell(svcVisitors, float64(s.Visitors), site, s.Name)
	tell(svcVisits, float64(s.Total), site, s.Name)
	tell(svcReceived, float64(s.Received), site, s.Name)
	tell(svcSent, float64(s.Sent), site, s.Name)
	for i, w := range public.Words {
		if w != "" && s.Errors[i] > 0 {
			tell(svcErrors, float64(s.Errors[i]), site, s.Name, w)
		}
	}
	for p, classes := range s.Requests {
		for class, n := range classes {
			if n > 0 {
				code := "none"
				if class > 0 {
					code = strconv.Itoa(class) + "xx"
				}
				tell(svcRequests, float64(n), site, s.Name, public.Protocols[p], code)
			}
		}
	}
	if s.Datagrams != (public.Datagrams{}) {
		tell(svcDatagrams, float64(s.Datagrams.Received), site, s.Name)
		tell(svcAnswers, float64(s.Datagrams.Sent), site, s.Name)
		tell(svcDropped, float64(s.Datagrams.Dropped), site, s.Name)
	}
	if s.Camera != nil {
		collectCamera(tell, site, s.Name, s.Camera)
	}
	if f := s.TFTP; f != nil {
		tell(filesAgain, float64(f.Retransmitted), site, s.Name)
		tell(filesRefused, float64(f.Refused), site, s.Name)
		tell(filesCached, float64(f.Cached), site, s.Name)
		tell(filesHits, float64(f.Hits), site, s.Name)
	}
	var count uint64
	buckets := make(map[float64]uint64, len(public.Bounds))
	for i, b := range public.Bounds {
		count += s.Durations.Counts[i]
		buckets[b.Seconds()] = count
	}
	if count += s.Durations.Longer; count > 0 {
		c <- prometheus.MustNewConstHistogram(svcDuration.desc, count, s.Durations.Sum.Seconds(), buckets, site, s.Name)
	}
}

func collectTFTP(tell func(metric, float64, ...string), t *public.TFTPPort) {
	tell(tftpRunning, float64(t.Running))
	tell(tftpUnproven, float64(t.Unproven))
	tell(tftpTotal, float64(t.Total))
	tell(tftpAgain, float64(t.Retransmitted))
	tell(tftpErrors, float64(t.ErrorsSent))
	tell(tftpDropped, float64(t.Dropped))
	for cause, n := range t.Causes() {
		tell(tftpRefused, float64(n), cause)
	}
	tell(tftpCached, float64(t.Cache.Bytes))
	tell(tftpCacheMost, float64(t.Cache.Limit))
	tell(tftpHits, float64(t.Cache.Hits))
	tell(tftpFetches, float64(t.Cache.Fetches))
	tell(tftpEvicted, float64(t.Cache.Evicted))
}

func collectCamera(tell func(metric, float64, ...string), site, service string, c *public.CameraStatus) {
	tell(camViewers, float64(c.Viewers), site, service)
	tell(camReceived, float64(c.Received), site, service)
	at := 0.0
	if !c.KeyFrame.IsZero() {
		at = float64(c.KeyFrame.UnixMilli()) / 1000
	}
	tell(camKeyFrame, at, site, service)
	tell(camReconnects, float64(c.Reconnects), site, service)
	tell(camDropped, float64(c.Dropped), site, service)
	for i, t := range c.Tracks {
		track, codec := strconv.Itoa(i), "other" // the name is the camera's own
		if slices.Contains(codecs, t.Codec) {
			codec = t.Codec
		}
		tell(camTrack, 1, site, service, track, codec)
		if t.Width > 0 && t.Height > 0 {
			tell(camWidth, float64(t.Width), site, service, track)
			tell(camHeight, float64(t.Height), site, service, track)
		}
	}
}

// codecs are those that a label may have; others are other.
var codecs = []string{"H264", "H265", "JPEG", "MPEG4", "MPV", "VP8", "VP9", "AV1", "AAC", "MPA", "OPUS", "PCMU", "PCMA", "G722", "L16", "VND.ONVIF.METADATA"}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
