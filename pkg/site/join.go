package site

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

// Redeem has the relay of a join token take a key (as auth.FormatPublicKey writes it): the site can dial in with it from then on. c
// verifies the relay; dial is the way to it, nil: TCP.
func Redeem(ctx context.Context, token auth.Token, key, software string, c *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) (relay.JoinResponse, error) {
	transport := &http.Transport{TLSClientConfig: c, DialContext: dial}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the secret goes nowhere else
	}
	in := relay.JoinRequest{Version: relay.WireVersion, Secret: token.Secret, Key: key, Software: software}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+token.Relay+relay.JoinPath, bytes.NewReader(relay.Encode(in)))
	if err != nil {
		return relay.JoinResponse{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return relay.JoinResponse{}, fmt.Errorf("join %s: %w", token.Relay, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, relay.MaxJoin+1))
	if err != nil {
		return relay.JoinResponse{}, fmt.Errorf("join %s: %w", token.Relay, err)
	}
	answer, err := relay.DecodeJoinResponse(b)
	switch {
	case err != nil && resp.StatusCode != http.StatusOK:
		return answer, fmt.Errorf("join %s: it answers %s: is it a public relay?", token.Relay, resp.Status)
	case err != nil:
		return answer, fmt.Errorf("join %s: %w", token.Relay, err)
	case answer.Error != nil:
		return answer, fmt.Errorf("join %s: refused: %w", token.Relay, answer.Error)
	case answer.Site != token.Site:
		return answer, fmt.Errorf("join %s: the token is for site %q, the relay made it %q", token.Relay, token.Site, answer.Site)
	}
	return answer, nil
}
