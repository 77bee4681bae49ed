package relay

import (
	"encoding/json"
	"errors"
	"fmt"
)

// MaxDiscover bounds a DiscoverReply, in bytes.
const MaxDiscover = 256 << 10

// A DiscoverRequest, on a stream of KindDiscover, asks a private relay to look for cameras on its network.
type DiscoverRequest struct {
	User     string `json:"user,omitempty"`     // for cameras that tell their streams to those alone who have a password; may be ""
	Password string `json:"password,omitempty"` // of all of them
}

// String does not show the password.
func (r DiscoverRequest) String() string { return "discover as " + r.User }

// A DiscoverReply is the answer.
type DiscoverReply struct {
	Error   string          `json:"error,omitempty"`   // why nobody has looked; for operators
	Devices json.RawMessage `json:"devices,omitempty"` // what there is: a list, see package onvif. The relays do not look into it
}

// DecodeDiscoverRequest decodes and checks a DiscoverRequest.
func DecodeDiscoverRequest(b []byte) (DiscoverRequest, error) {
	var r DiscoverRequest
	if err := decodeJSON(b, MaxMessage, "discover", &r); err != nil {
		return DiscoverRequest{}, err
	}
	return r, r.Check()
}

// Check reports what is wrong with r.
func (r DiscoverRequest) Check() error {
	if len(r.User) > 128 || len(r.Password) > 256 {
		return errors.New("discover: a user of more than 128 bytes or a password of more than 256")
	}
	if r.User == "" && r.Password != "" {
		return errors.New("discover: a password without a user")
	}
	return nil
}

// DecodeDiscoverReply decodes and checks a DiscoverReply.
func DecodeDiscoverReply(b []byte) (DiscoverReply, error) {
	var r DiscoverReply
	if err := decodeJSON(b, MaxDiscover, "discovered", &r); err != nil {
		return DiscoverReply{}, err
	}
	if !isPrintable(r.Error) || len(r.Error) > 1<<10 {
		return DiscoverReply{}, fmt.Errorf("discovered: malformed error")
	}
	if r.Error == "" && (len(r.Devices) == 0 || r.Devices[0] != '[') {
		return DiscoverReply{}, errors.New("discovered: no list of devices")
	}
	return r, nil
}
