package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"

	"culvert.dev/pkg/rest"
)

// Client asks a relay's admin API. Its methods may be called from several goroutines.
type Client struct {
	// Base is where the relay is: http://127.0.0.1:7070, or https:// and the relay's own domain.
	Base *url.URL

	// Token is the operators' token.
	Token string

	// TLS is used for an https Base. nil: the system's roots.
	TLS *tls.Config

	// DialContext replaces the network. nil: net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Error is a refusal of the relay's: what the methods of Client return for every answer of a relay that is not a success.
type Error = rest.Error

// ForeignError says that whatever answers is not the admin API of a relay.
type ForeignError struct {
	Host   string
	Status string // of its answer: "404 Not Found"
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s answers (%s), but not as the admin API of a relay", e.Host, e.Status)
}

// Caller calls methods by their names: rest.Invoke[[]admin.Site](ctx, c.Caller(), "sites/List", admin.None{}). The methods
// of Client are those that have been written down.
func (c *Client) Caller() rest.Caller {
	return &rest.Client{
		Base:   c.at("/api/"),
		Header: http.Header{"Authorization": {"Bearer " + c.Token}},
		HTTP:   c.http(),
	}
}

// at is the URL of a path of the relay.
func (c *Client) at(path string) *url.URL {
	return &url.URL{Scheme: c.Base.Scheme, Host: c.Base.Host, Path: path}
}

// Dial opens a WebSocket for many calls and feeds at a time. Close ends it.
func (c *Client) Dial(ctx context.Context) (*rest.Socket, error) {
	return rest.DialWebSocket(ctx, c.at("/api/ws").String(), http.Header{"Authorization": {"Bearer " + c.Token}}, c.http())
}

// http connects anew for each request: one each run of tunnelctl is the rule, and a kept connection would only have to be
// closed again. No proxy, and no redirection: the token goes to the relay and to nobody else.
func (c *Client) http() *http.Client {
	return &http.Client{
		Transport: &known{host: c.Base.Host, next: &http.Transport{
			TLSClientConfig: c.TLS, DialContext: c.DialContext, DisableKeepAlives: true, DisableCompression: true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// known lets no answer through that is not a relay's: a program that speaks JSON at the wrong address must not be taken for
// a relay that has nothing to say.
type known struct {
	host string
	next http.RoundTripper
}

func (k *known) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := k.next.RoundTrip(r)
	if err != nil || resp.Header.Get(signature) != "" || resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, err
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := new(Error)
	if resp.StatusCode >= 400 && json.Unmarshal(b, e) == nil && e.Code == resp.StatusCode && e.Text != "" { // it has not let us in
		resp.Body = io.NopCloser(bytes.NewReader(b))
		return resp, nil
	}
	return nil, &ForeignError{Host: k.host, Status: resp.Status}
}

// call calls a method.
func call[Out, In any](ctx context.Context, c *Client, name string, in In) (Out, error) {
	out, err := rest.Invoke[Out](ctx, c.Caller(), name, in)
	return out, plain(err)
}

// follow calls a feed.
func follow[Event, In any](ctx context.Context, c *Client, name string, in In) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for e, err := range rest.Follow[Event](ctx, c.Caller(), name, in) {
			if !yield(e, plain(err)) {
				return
			}
		}
	}
}

// plain leaves away that a request has failed, and its URL: what it was is said by whoever asks.
func plain(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// Status returns the relay's state now.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return call[*Status](ctx, c, "status/Get", None{})
}

// WatchFigures returns rates, one set each in.Every seconds, until ctx ends or the loop over them is left.
func (c *Client) WatchFigures(ctx context.Context, in Every) iter.Seq2[Figures, error] {
	return follow[Figures](ctx, c, "status/Watch", in)
}

// Sites lists the sites.
func (c *Client) Sites(ctx context.Context) ([]Site, error) {
	return call[[]Site](ctx, c, "sites/List", None{})
}

// Site returns one site.
func (c *Client) Site(ctx context.Context, name string) (Site, error) {
	return call[Site](ctx, c, "sites/Get", Named{name})
}

// AddSite asks for a join token.
func (c *Client) AddSite(ctx context.Context, in Invite) (*Invitation, error) {
	return call[*Invitation](ctx, c, "sites/Invite", in)
}

// RotateSite asks for a join token that replaces the keys of a site once it is used.
func (c *Client) RotateSite(ctx context.Context, in Rotate) (*Invitation, error) {
	return call[*Invitation](ctx, c, "sites/Rotate", in)
}

// RevokeSite makes the relay forget a key of a site, or all of them if key is "", and cut
// their sessions.
func (c *Client) RevokeSite(ctx context.Context, name, key string) error {
	_, err := call[None](ctx, c, "sites/Revoke", Revoke{name, key})
	return err
}

// PromoteSite has a stand-by of a site take over.
func (c *Client) PromoteSite(ctx context.Context, name string, p Promote) (*Promoted, error) {
	p.Name = name
	return call[*Promoted](ctx, c, "sites/Promote", p)
}

// Expose makes an ephemeral site.
func (c *Client) Expose(ctx context.Context, in Expose) (*Exposed, error) {
	return call[*Exposed](ctx, c, "sites/Expose", in)
}

// Cameras has a site look for cameras.
func (c *Client) Cameras(ctx context.Context, site string, in Search) (*Cameras, error) {
	in.Site = site
	return call[*Cameras](ctx, c, "sites/Cameras", in)
}

// Services lists the services of a site, or of all with "".
func (c *Client) Services(ctx context.Context, site string) ([]Service, error) {
	return call[[]Service](ctx, c, "services/List", OfSite{site})
}

// Sessions lists the sessions of a site, or of all with "".
func (c *Client) Sessions(ctx context.Context, site string) ([]Session, error) {
	return call[[]Session](ctx, c, "sessions/List", OfSite{site})
}

// Links lists the links of a site, or of all with "".
func (c *Client) Links(ctx context.Context, site string) ([]Link, error) {
	return call[[]Link](ctx, c, "links/List", OfSite{site})
}

// KickSession ends a session.
func (c *Client) KickSession(ctx context.Context, id string) error {
	_, err := call[None](ctx, c, "sessions/Kick", ByID{id})
	return err
}

// Streams lists what is open.
func (c *Client) Streams(ctx context.Context, in Filter) ([]Stream, error) {
	return call[[]Stream](ctx, c, "streams/List", in)
}

// KickStream resets a stream.
func (c *Client) KickStream(ctx context.Context, id string) error {
	_, err := call[None](ctx, c, "streams/Kick", ByID{id})
	return err
}

// Visitors lists who has streams.
func (c *Client) Visitors(ctx context.Context, in Limit) ([]Visitor, error) {
	return call[[]Visitor](ctx, c, "visitors/List", in)
}

// Certificates lists those that the relay obtains by itself.
func (c *Client) Certificates(ctx context.Context) ([]Certificate, error) {
	return call[[]Certificate](ctx, c, "certificates/List", None{})
}

// RenewCertificate has another certificate ordered for a name.
func (c *Client) RenewCertificate(ctx context.Context, name string) error {
	_, err := call[None](ctx, c, "certificates/Renew", Named{name})
	return err
}

// Requests lists the last ones.
func (c *Client) Requests(ctx context.Context, in Filter) ([]Request, error) {
	return call[[]Request](ctx, c, "requests/List", in)
}

// FollowRequests returns requests from now on, until ctx ends or the loop over them is left.
func (c *Client) FollowRequests(ctx context.Context, in Filter) iter.Seq2[Request, error] {
	return follow[Request](ctx, c, "requests/Follow", in)
}

// Request returns one request as far as it was kept.
func (c *Client) Request(ctx context.Context, id string) (*Exchange, error) {
	return call[*Exchange](ctx, c, "requests/Get", ByID{id})
}

// Replay sends a request once more.
func (c *Client) Replay(ctx context.Context, id string) (*Exchange, error) {
	return call[*Exchange](ctx, c, "requests/Replay", ByID{id})
}

// History returns rates of the past.
func (c *Client) History(ctx context.Context, in Span) (*History, error) {
	return call[*History](ctx, c, "history/Get", in)
}

// TestAlerts has those who are told of alerts be told of nothing, and returns what came of it.
func (c *Client) TestAlerts(ctx context.Context) ([]AlertDelivery, error) {
	return call[[]AlertDelivery](ctx, c, "alerts/Test", None{})
}

// Alerts lists what an operator should look after.
func (c *Client) Alerts(ctx context.Context) ([]Alert, error) {
	return call[[]Alert](ctx, c, "alerts/List", None{})
}

// Logs returns the last lines of the relay's log.
func (c *Client) Logs(ctx context.Context, in Lines) ([]LogLine, error) {
	return call[[]LogLine](ctx, c, "logs/List", in)
}

// FollowLogs returns these, and then those that come, until ctx ends or the loop over them is left.
func (c *Client) FollowLogs(ctx context.Context, in Lines) iter.Seq2[LogLine, error] {
	return follow[LogLine](ctx, c, "logs/Follow", in)
}

// Me says whose the token is.
func (c *Client) Me(ctx context.Context) (Me, error) {
	return call[Me](ctx, c, "operators/Me", None{})
}

// Operators lists who may use the API.
func (c *Client) Operators(ctx context.Context) ([]Operator, error) {
	return call[[]Operator](ctx, c, "operators/List", None{})
}

// AddOperator makes an operator and a first token.
func (c *Client) AddOperator(ctx context.Context, name, role string) (NewToken, error) {
	return call[NewToken](ctx, c, "operators/Add", OperatorRole{name, role})
}

// SetRole gives an operator another role.
func (c *Client) SetRole(ctx context.Context, name, role string) error {
	_, err := call[None](ctx, c, "operators/SetRole", OperatorRole{name, role})
	return err
}

// RemoveOperator forgets an operator, and ends all tokens of that name.
func (c *Client) RemoveOperator(ctx context.Context, name string) error {
	_, err := call[None](ctx, c, "operators/Remove", Named{name})
	return err
}

// Tokens lists the caller's tokens; for admins, those of all.
func (c *Client) Tokens(ctx context.Context) ([]TokenInfo, error) {
	return call[[]TokenInfo](ctx, c, "tokens/List", None{})
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, in CreateToken) (NewToken, error) {
	return call[NewToken](ctx, c, "tokens/Create", in)
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := call[None](ctx, c, "tokens/Revoke", ByID{id})
	return err
}

// AuditLog returns the last lines of who has changed what.
func (c *Client) AuditLog(ctx context.Context, in Lines) ([]AuditLine, error) {
	return call[[]AuditLine](ctx, c, "audit/List", in)
}

// CheckConfig has the relay say what is wrong with a public.toml.
func (c *Client) CheckConfig(ctx context.Context, text string) (*ConfigReport, error) {
	return call[*ConfigReport](ctx, c, "config/Check", ConfigText{text})
}

// Version says which program the relay is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return call[Version](ctx, c, "relay/Version", None{})
}

// Drain has the relay stop, as soon as its visitors have finished.
func (c *Client) Drain(ctx context.Context) error {
	_, err := call[None](ctx, c, "relay/Drain", None{})
	return err
}
