package admin

import (
	"encoding/json"
	"time"
)

// Counters counts what has happened on the HTTP listeners since the start.
type Counters struct {
	Requests          uint64 `json:"requests"`           // sent on to a site
	Answered          uint64 `json:"answered"`           // by the relay itself: errors and redirects
	Rejected          uint64 `json:"rejected"`           // requests that were malformed or too slow
	Malformed         uint64 `json:"malformed"`          // responses that were
	TurnedAway        uint64 `json:"turned_away"`        // connections beyond a limit
	Refused           uint64 `json:"refused"`            // requests, connections and datagrams that the policy of a service did not let in
	HandshakesFailed  uint64 `json:"handshakes_failed"`  // TLS
	HandshakesLimited uint64 `json:"handshakes_limited"` // connections closed before one, as their address had too many
	Prefaces          uint64 `json:"bad_proxy_headers"`  // connections of proxies without a valid PROXY protocol header
}

// Status is the state of a public relay at one moment.
type Status struct {
	Version   string     `json:"version"`      // of the program
	Wire      int        `json:"wire_version"` // of the protocol between the relays
	Domain    string     `json:"domain"`       // the relay's own name
	Uptime    float64    `json:"uptime_s"`     // seconds
	Draining  bool       `json:"draining,omitempty"`
	Visitors  int        `json:"visitors"` // connections open now
	Counters  Counters   `json:"counters"`
	Listeners []Listener `json:"listeners"`
	Sites     []Site     `json:"sites"`
	Services  []Service  `json:"services"`
	TFTP      *TFTP      `json:"tftp,omitempty"` // nil: there is no listener for it

	Certificates []Certificate `json:"certificates"` // that the relay obtains by itself
}

// Certificate is one that the relay has from an authority, or would like to have.
type Certificate struct {
	Name      string     `json:"name"`
	Directory string     `json:"directory,omitempty"` // URL of the authority's ACME directory
	Issuer    string     `json:"issuer,omitempty"`    // who has signed it
	Expires   *time.Time `json:"expires,omitempty"`   // nil: there is none yet
	Renews    *time.Time `json:"renews,omitempty"`    // when it is due to be renewed
	OnDemand  bool       `json:"on_demand,omitempty"` // because a visitor has asked for it
	Ordering  bool       `json:"ordering,omitempty"`  // the authority is being asked just now
	Failures  int        `json:"failures,omitempty"`  // attempts since the last one that went well
	Error     string     `json:"error,omitempty"`     // why the last one did not
	NextTry   *time.Time `json:"next_try,omitempty"`  // when the next one is due, if the last has failed
}

// TFTP is what is known of TFTP in all.
type TFTP struct {
	Running       int               `json:"running"`               // transfers
	Unproven      int               `json:"unproven,omitempty"`    // of those: from addresses that have not answered yet, and may be forged
	Total         uint64            `json:"total"`                 // transfers that have begun
	Refused       map[string]uint64 `json:"refused,omitempty"`     // requests, by cause: malformed, limit, policy, not-found, failed, displaced
	Retransmitted uint64            `json:"retransmitted"`         // packets that were sent once more
	ErrorsSent    uint64            `json:"errors_sent"`           // ERROR packets
	Dropped       uint64            `json:"datagrams_dropped"`     // that were not answered, or not sent: there were too many, or they made no sense
	Cached        int64             `json:"cached"`                // bytes of files that are kept
	CacheLimit    int64             `json:"cache_limit,omitempty"` // that may be
	Hits          uint64            `json:"hits"`                  // files that had not to come from the site
}

// Listener is one address the relay accepts connections on.
type Listener struct {
	Name string `json:"name"` // https, http, admin, or the publish URL of a tcp service
	Addr string `json:"addr"`
}

// The states of a Site.
const (
	StateConnected = "connected" // the active session has a link
	StateSuspended = "suspended" // its links are lost, streams are kept until the resume timeout
	StateLeaving   = "leaving"   // its private relay shuts down, streams may finish
	StateAway      = "away"      // no session
	StateInvited   = "invited"   // a join token is out; no key is known yet
)

// StateStandby is that of a Session which is not active, and has a link. The others
// have the states of a Site.
const StateStandby = "standby"

// Site is one closed network and the sessions of its private relays. What is said of a
// session here is that of the active one.
type Site struct {
	Name           string     `json:"name"`
	State          string     `json:"state"`
	Publish        []string   `json:"publish"`                   // patterns the site may publish
	Keys           []string   `json:"keys,omitempty"`            // of its private relays
	Remote         string     `json:"remote,omitempty"`          // address the link comes from
	Software       string     `json:"software,omitempty"`        // what the private relay says it is
	RTT            float64    `json:"rtt_ms,omitempty"`          // of the best link; 0: not measured yet
	Streams        int        `json:"streams"`                   // open now
	Received       uint64     `json:"received"`                  // bytes of stream data from the site, this session
	Sent           uint64     `json:"sent"`                      // bytes of stream data to the site, this session
	ConnectedSince *time.Time `json:"connected_since,omitempty"` // when the session began
	SuspendedSince *time.Time `json:"suspended_since,omitempty"` // when its last link was lost
	InvitedUntil   *time.Time `json:"invited_until,omitempty"`   // when the join token expires
	Sessions       []Session  `json:"sessions,omitempty"`        // the active one first
	Ephemeral      bool       `json:"ephemeral,omitempty"`       // made by Expose
}

// Session is the session of one private relay.
type Session struct {
	Site           string     `json:"site,omitempty"` // in sessions/List
	ID             string     `json:"id"`             // what Promote and sessions/Kick take
	State          string     `json:"state"`
	Active         bool       `json:"active"`            // it gets the site's visitors
	Key            string     `json:"key"`               // of the private relay
	Machine        string     `json:"machine,omitempty"` // where it runs; the same after a restart
	Process        string     `json:"process,omitempty"` // another one after a restart
	Remote         string     `json:"remote"`            // where its newest link comes from
	Software       string     `json:"software,omitempty"`
	Choice         string     `json:"choice,omitempty"` // why it uses the transports that it does, in its own words
	RTT            float64    `json:"rtt_ms,omitempty"`
	Links          []Link     `json:"links"`
	Streams        int        `json:"streams"`
	Received       uint64     `json:"received"`
	Sent           uint64     `json:"sent"`
	Buffered       int        `json:"buffered"`                    // bytes that its streams keep here
	Dropped        uint64     `json:"datagrams_dropped,omitempty"` // they came faster than its links take them, or it had none
	ConnectedSince time.Time  `json:"connected_since"`
	SuspendedSince *time.Time `json:"suspended_since,omitempty"`
	Offers         int        `json:"offers"`            // services that it has announced
	Refused        []Refused  `json:"refused,omitempty"` // those of them that are, or would be, not published; the first 20
}

// Link is one link of a session.
type Link struct {
	Site      string    `json:"site,omitempty"`    // in links/List
	Session   string    `json:"session,omitempty"` // its ID, there
	Transport string    `json:"transport"`         // wss or quic
	Role      string    `json:"role"`              // interactive, bulk or datagram; none: it is being drained
	RTT       float64   `json:"rtt_ms,omitempty"`
	Remote    string    `json:"remote"`
	Suspect   bool      `json:"suspect,omitempty"` // an answer is owed, and nothing comes
	Since     time.Time `json:"since"`
}

// Refused is a service that is not published, and why.
type Refused struct {
	Service string `json:"service"`
	Error   string `json:"error"`
}

// Service is one pair of publish and target that a connected site has announced.
type Service struct {
	Site     string `json:"site"`
	Name     string `json:"name"`
	Publish  string `json:"publish,omitempty"` // URL; empty: reachable by operators only
	Target   string `json:"target_scheme"`     // the scheme alone: the address is the site's own business
	Visitors int    `json:"visitors"`          // now
	Total    uint64 `json:"visitors_total"`
	Received uint64 `json:"received"` // bytes from visitors
	Sent     uint64 `json:"sent"`     // bytes to visitors

	// Errors counts what went wrong, by the words of the access log; nil: nothing.
	Errors map[string]uint64 `json:"errors,omitempty"`

	// Of a udp service, whose visitors are flows. Dropped are those that were lost at its port: there was a
	// limit, or a buffer was full.
	DatagramsReceived uint64 `json:"datagrams_received,omitempty"`
	DatagramsSent     uint64 `json:"datagrams_sent,omitempty"`
	DatagramsDropped  uint64 `json:"datagrams_dropped,omitempty"`

	Camera *Camera `json:"camera,omitempty"` // nil: the service is none
	Files  *Files  `json:"files,omitempty"`  // nil: the service has none, by TFTP
}

// Files is what is known of a service of files by TFTP. Its visitors are transfers.
type Files struct {
	Rate          uint64 `json:"bits_per_second"` // of files, both ways, on the average of the last seconds
	Retransmitted uint64 `json:"retransmitted"`   // packets that were sent once more
	Refused       uint64 `json:"refused"`         // requests that were not admitted
	Cached        int64  `json:"cached"`          // bytes of its files that are kept at the public relay
	Hits          uint64 `json:"hits"`            // files that were read and had not to come from the site
}

// Camera is what is known of the camera of a service.
type Camera struct {
	Viewers    int           `json:"viewers"`             // who play it now
	Received   uint64        `json:"received"`            // bytes of pictures and sound from the site
	Rate       uint64        `json:"bits_per_second"`     // of them, on the average of the last seconds
	Tracks     []CameraTrack `json:"tracks,omitempty"`    // of its last description; nil: nobody has watched it yet
	KeyFrame   *time.Time    `json:"key_frame,omitempty"` // when the last one came
	Reconnects uint64        `json:"reconnects"`          // of the stream that viewers share
	Dropped    uint64        `json:"frames_dropped"`      // for viewers who are slow
}

// CameraTrack is one track of a Camera.
type CameraTrack struct {
	Media  string `json:"media"` // video, audio, application
	Codec  string `json:"codec,omitempty"`
	Width  int    `json:"width,omitempty"` // of the picture; 0: not known
	Height int    `json:"height,omitempty"`
}

// Invite asks for a join token: a site of that name may join once, and may then publish what the
// patterns allow. A token for a stand-by adds a private relay to a site that is there, and has no
// patterns.
type Invite struct {
	Name    string   `json:"name" doc:"the site"`
	Publish []string `json:"publish,omitempty" doc:"patterns of what it may publish, such as https://*.example.com"`
	Standby bool     `json:"standby,omitempty" doc:"for one more private relay of a site that is there"`
	TTL     float64  `json:"ttl_s,omitempty" doc:"seconds the token lives; 0: 24 hours"`
}

// Lifetime returns the TTL as a duration.
func (i Invite) Lifetime() time.Duration { return time.Duration(i.TTL * float64(time.Second)) }

// Invitation is the answer to an Invite. Token is a secret, shown this once.
type Invitation struct {
	Site    string    `json:"site"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Promote has a stand-by of a site take over: visitors who come from now on go to it.
type Promote struct {
	Name    string `json:"name" doc:"the site"`
	Session string `json:"session,omitempty" doc:"the ID of a session, or its beginning; empty: the only stand-by"`
	Cut     bool   `json:"cut,omitempty" doc:"what visitors have under way elsewhere is reset after the relay's drain_timeout"`
}

// Promoted is the answer to a Promote.
type Promoted struct {
	Session string `json:"session"` // ID
}

// Search has the private relay of a site look for cameras on its network. It takes some seconds.
type Search struct {
	Site     string `json:"site"`
	User     string `json:"user,omitempty"` // for cameras that tell who has a password alone what they show
	Password string `json:"password,omitempty"`
}

// SearchTime is how long a Search may take.
const SearchTime = 40 * time.Second

// Cameras is the answer to a Search: a list of what package onvif calls a Device.
type Cameras struct {
	Devices json.RawMessage `json:"devices"`
}

// Revoke forgets a key of a site and cuts its sessions.
type Revoke struct {
	Name string `json:"name" doc:"the site"`
	Key  string `json:"key,omitempty" doc:"ed25519:…; empty: all keys of the site, and its invitations"`
}

// Rotate asks for a join token that replaces the keys of a site: they go on to be good until it is used.
type Rotate struct {
	Name string  `json:"name" doc:"the site"`
	TTL  float64 `json:"ttl_s,omitempty" doc:"seconds the token lives; 0: 24 hours"`
}

// Expose makes an ephemeral site, which is gone a minute after its last session.
type Expose struct {
	Publish []string `json:"publish,omitempty" doc:"URLs that the site will publish; none: the relay chooses one"`
	Key     string   `json:"key" doc:"the site's public key, ed25519:…"`
	Name    string   `json:"name,omitempty" doc:"of the site; empty: the relay chooses one"`
}

// Exposed is the answer to an Expose.
type Exposed struct {
	Site    string   `json:"site"`
	Publish []string `json:"publish"`      // what it may publish
	Relay   string   `json:"relay"`        // HOST:PORT that its private relay dials
	CA      string   `json:"ca,omitempty"` // PEM of the authority that vouches for the relay, if not every machine knows it
}

// None is what a method takes that needs nothing to be said, and gives that has nothing to say.
type None struct{}

// Named names a site, a certificate or an operator.
type Named struct {
	Name string `json:"name"`
}

// OfSite asks for what belongs to a site.
type OfSite struct {
	Site string `json:"site,omitempty" doc:"empty: all sites"`
}

// ByID names a session, a stream, a request or a token.
type ByID struct {
	ID string `json:"id"`
}

// Filter chooses streams or requests.
type Filter struct {
	Site    string `json:"site,omitempty" doc:"empty: all sites"`
	Service string `json:"service,omitempty" doc:"its name; empty: all services"`
	Limit   int    `json:"limit,omitempty" doc:"how many at most" default:"200" min:"1" max:"10000"`
}

// Limit bounds a list.
type Limit struct {
	Limit int `json:"limit,omitempty" doc:"how many at most" default:"200" min:"1" max:"10000"`
}

// Lines chooses the last lines of a log.
type Lines struct {
	Lines int `json:"lines,omitempty" doc:"how many at most, the last ones" default:"200" min:"1" max:"10000"`
}

// Every says how often a feed is to send.
type Every struct {
	Every float64 `json:"every_s,omitempty" doc:"seconds between two" default:"1" min:"0.2" max:"60"`
}

// Figures are the rates between two looks at the relay, and what is open now.
type Figures struct {
	Time     time.Time        `json:"time"`
	Visitors int              `json:"visitors"` // connections open now
	Streams  int              `json:"streams"`  // of all sites
	Requests uint64           `json:"requests"` // so far, sent on to a site
	Draining bool             `json:"draining,omitempty"`
	Sites    []SiteFigures    `json:"sites"`
	Services []ServiceFigures `json:"services"`
}

// SiteFigures are those of a site, as far as they are about its active session.
type SiteFigures struct {
	Name     string  `json:"name"`
	State    string  `json:"state"` // as of a Site
	RTT      float64 `json:"rtt_ms,omitempty"`
	Streams  int     `json:"streams"`
	In       float64 `json:"in"`  // bytes per second from visitors to the site
	Out      float64 `json:"out"` // bytes per second from the site to visitors
	Sessions int     `json:"sessions"`
	Links    int     `json:"links"`
}

// ServiceFigures are those of a service.
type ServiceFigures struct {
	Site     string  `json:"site"`
	Name     string  `json:"name"`
	Visitors int     `json:"visitors"`
	In       float64 `json:"in"`       // bytes per second from visitors
	Out      float64 `json:"out"`      // bytes per second to visitors
	Requests float64 `json:"requests"` // that are over, per second; of a service without requests: visitors who came
	Errors   float64 `json:"errors"`   // of them, those that went wrong on the relays' or the site's side; as in the History
}

// Look is what Figures are made of: the relay at one moment. Rates are the differences of two.
type Look struct {
	Time     time.Time
	Visitors int
	Streams  int
	Requests uint64
	Draining bool
	Sites    []SiteLook
	Services []ServiceLook
}

// SiteLook is a site at one moment.
type SiteLook struct {
	SiteFigures           // but for the rates
	Received, Sent uint64 // bytes of streams, from the site and to it, of all its sessions so far
}

// ServiceLook is a service at one moment. Its counters may begin anew.
type ServiceLook struct {
	Site, Name     string
	Visitors       int
	Received, Sent uint64 // bytes from visitors, and to them
	Requests       uint64 // see ServiceFigures
	Errors         uint64
}

// Stream is one visitor's connection to a service, or one operator's.
type Stream struct {
	ID       string    `json:"id"`
	Site     string    `json:"site"`
	Service  string    `json:"service"`
	Scheme   string    `json:"scheme"` // of what is published; forward for an operator's
	Host     string    `json:"host,omitempty"`
	Remote   string    `json:"remote"`
	Operator string    `json:"operator,omitempty"` // whose it is, if it is a forward
	Since    time.Time `json:"since"`
	Received uint64    `json:"received"` // bytes from the visitor
	Sent     uint64    `json:"sent"`     // bytes to the visitor
	Idle     float64   `json:"idle_s"`   // since something came or went
	State    string    `json:"state"`
}

// Visitor is an address that has streams.
type Visitor struct {
	Address  string    `json:"address"`
	Streams  int       `json:"streams"`
	Since    time.Time `json:"since"` // of the oldest stream
	Received uint64    `json:"received"`
	Sent     uint64    `json:"sent"`
	Services []string  `json:"services"` // SITE/SERVICE
}

// Request is one of the last requests, after its end.
type Request struct {
	ID          string    `json:"id"`
	Time        time.Time `json:"time"` // when it came
	Site        string    `json:"site"`
	Service     string    `json:"service"`
	Remote      string    `json:"remote"`
	Method      string    `json:"method"`
	Host        string    `json:"host"`
	Path        string    `json:"path"`
	Proto       string    `json:"proto"`
	Status      int       `json:"status"`
	Operator    string    `json:"operator,omitempty"` // who has sent it again; empty: it is a visitor's
	Word        string    `json:"word,omitempty"`     // of the access log, if something went wrong
	Received    uint64    `json:"received"`           // bytes of its body
	Sent        uint64    `json:"sent"`               // bytes of the answer's
	Wait        float64   `json:"wait_ms"`            // until the head of the answer came
	Took        float64   `json:"took_ms"`            // until its end
	Inspectable bool      `json:"inspectable,omitempty"`
}

// Exchange is a request with what was said, as far as that was kept. Secrets are redacted.
type Exchange struct {
	Request
	ReplayOf       string        `json:"replay_of,omitempty"` // ID of the request that it is a copy of
	RequestHeader  []HeaderField `json:"request_header"`
	ResponseHeader []HeaderField `json:"response_header"`
	RequestBody    Body          `json:"request_body"`
	ResponseBody   Body          `json:"response_body"`
}

// HeaderField is one line of a head.
type HeaderField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Body is what was kept of one: as Text if it is some, otherwise as Base64.
type Body struct {
	Text      string `json:"text,omitempty"`
	Base64    []byte `json:"base64,omitempty"`
	Size      int64  `json:"size"` // of all of it
	Truncated bool   `json:"truncated,omitempty"`
	Redacted  bool   `json:"redacted,omitempty"`
}

// Span asks for the past of a service, a site, or all.
type Span struct {
	Site    string  `json:"site,omitempty" doc:"empty: the whole relay"`
	Service string  `json:"service,omitempty" doc:"its name; empty: the whole site"`
	Span    float64 `json:"span_s,omitempty" doc:"seconds back from now" default:"3600" min:"1"`
}

// History has a value for each step since Start, the oldest first.
type History struct {
	Step     float64   `json:"step_s"` // seconds
	Start    time.Time `json:"start"`
	In       []float64 `json:"in"`  // bytes per second from visitors
	Out      []float64 `json:"out"` // bytes per second to visitors
	Visitors []float64 `json:"visitors"`
	Requests []float64 `json:"requests"` // per second
	Errors   []float64 `json:"errors"`   // per second
}

// LogLine is one line of the relay's log.
type LogLine struct {
	Time    time.Time         `json:"time"`
	Level   string            `json:"level"` // DEBUG, INFO, WARN, ERROR
	Message string            `json:"message"`
	Attrs   map[string]string `json:"attrs,omitempty"`
}

// The kinds of an Alert.
const (
	AlertSiteAway    = "site-away"
	AlertCertificate = "certificate"
	AlertDisk        = "disk"
	AlertAccessLog   = "access-log"
	AlertTest        = "test"
)

// Alert is something that an operator should look after.
type Alert struct {
	ID       string     `json:"id"`
	Kind     string     `json:"kind"`
	Subject  string     `json:"subject"` // the site, the name of the certificate, the folder
	Text     string     `json:"text"`
	Since    time.Time  `json:"since"`
	Resolved *time.Time `json:"resolved,omitempty"` // nil: it is still so
}

// AlertDelivery is what came of a test.
type AlertDelivery struct {
	To    string `json:"to"`              // who was told, without secrets
	Error string `json:"error,omitempty"` // why not; empty: the message has arrived
}

// Me says who the caller is.
type Me struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`              // of the token: viewer, operator or admin
	Expires *time.Time `json:"expires,omitempty"` // of the token or the cookie; nil: never
}

// Operator is somebody who may use the API.
type Operator struct {
	Name     string     `json:"name"`
	Role     string     `json:"role"`
	Created  time.Time  `json:"created"`
	Tokens   int        `json:"tokens"` // that are good
	LastUsed *time.Time `json:"last_used,omitempty"`
}

// OperatorRole names an operator and a role: a new one, or the one that the operator is to have.
type OperatorRole struct {
	Name string `json:"name"`
	Role string `json:"role" enum:"viewer,operator,admin"`
}

// CreateToken asks for a token.
type CreateToken struct {
	Operator string  `json:"operator,omitempty" doc:"whose it will be; empty: the caller's"`
	TTL      float64 `json:"ttl_s,omitempty" doc:"seconds it lives; 0: 90 days"`
	Never    bool    `json:"never,omitempty" doc:"it does not expire"`
	Note     string  `json:"note,omitempty" doc:"what it is for"`
	Role     string  `json:"role,omitempty" doc:"viewer, operator or admin, not above that of the operator; empty: that"`
}

// NewToken is the answer to who asks for a token, or adds an operator. Token is a secret, shown this once.
type NewToken struct {
	ID       string     `json:"id"`
	Operator string     `json:"operator"`
	Role     string     `json:"role"`
	Token    string     `json:"token"`
	Expires  *time.Time `json:"expires,omitempty"` // nil: never
	Login    string     `json:"login,omitempty"`   // where one can log in with it from other machines: https://relay.example.com; "": nowhere
}

// TokenInfo is what is known of a token, which is not the token.
type TokenInfo struct {
	ID       string     `json:"id"`
	Operator string     `json:"operator"`
	Role     string     `json:"role"`
	Note     string     `json:"note,omitempty"`
	Created  time.Time  `json:"created"`
	Expires  *time.Time `json:"expires,omitempty"`   // nil: never
	LastUsed *time.Time `json:"last_used,omitempty"` // to the minute; nil: never
	LastFrom string     `json:"last_from,omitempty"` // the address
	Current  bool       `json:"current,omitempty"`   // the caller's own, by which it has asked
}

// AuditLine is one line of the audit log: who has changed what, or was refused.
type AuditLine struct {
	Time     time.Time       `json:"time"`
	Operator string          `json:"operator,omitempty"` // empty: nobody that is known
	Role     string          `json:"role,omitempty"`
	Token    string          `json:"token,omitempty"` // its ID
	Remote   string          `json:"remote"`
	Via      string          `json:"via"`  // http, websocket, stream
	Call     string          `json:"call"` // sites/Revoke, login, forward
	In       json.RawMessage `json:"in,omitempty"`
	Code     int             `json:"code"` // 200, or that of the refusal
	Error    string          `json:"error,omitempty"`
}

// ConfigText is a configuration file.
type ConfigText struct {
	Text string `json:"text" doc:"the content of public.toml"`
}

// ConfigReport says what is wrong with a configuration file.
type ConfigReport struct {
	OK       bool     `json:"ok"`
	Mistakes []string `json:"mistakes,omitempty"` // with their lines
	Restart  []string `json:"restart,omitempty"`  // what of it a reload would not change
}

// Version says which program this is.
type Version struct {
	Version string `json:"version"`
	Wire    int    `json:"wire_version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}
