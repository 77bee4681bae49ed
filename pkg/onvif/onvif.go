// Package onvif finds the cameras on the networks of this machine and asks them for the URLs of their streams.
//
// Who is there is asked by WS-Discovery, a datagram to a multicast group on each network; what they have to show by
// ONVIF's device and media services, which are SOAP over HTTP.
//
//	f := onvif.Finder{User: "admin", Password: password}
//	devices, err := f.Find(ctx)
//	for _, d := range devices {
//		fmt.Println(d.Name, d.Address, d.Streams, d.Problem)
//	}
//
// Invariants:
//   - Nobody is asked but those who answered a probe, at the address that they answered from.
//   - A password is not sent to anybody, but digests of it to those devices.
//   - What a device sends is bounded in size, depth, number and time. Texts of devices are printable and short.
package onvif

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// DefaultWait is how long devices get to answer a probe. They wait up to half a second themselves, not to answer all
// at once.
const DefaultWait = 3 * time.Second

// maxAsked is how many devices are asked at a time.
const maxAsked = 16

// Finder finds cameras. Its zero value looks on all networks, and asks as nobody.
type Finder struct {
	// User and Password are for all devices that are found. Without a User those that want one are listed without
	// their streams.
	User, Password string

	// Addresses are asked by themselves, beside the multicast groups, which routers do not pass on: cameras in other
	// networks. Their port is 3702 as a rule.
	Addresses []netip.AddrPort

	// NoMulticast asks the Addresses alone.
	NoMulticast bool

	// Wait is how long devices get to answer a probe. 0: DefaultWait.
	Wait time.Duration
}

// Device is a camera, or a recorder with several.
type Device struct {
	ID       string   `json:"id"` // its endpoint reference, the same for as long as it lives
	Address  string   `json:"address"`
	Name     string   `json:"name,omitempty"`
	Hardware string   `json:"hardware,omitempty"` // its model
	Location string   `json:"location,omitempty"`
	Streams  []Stream `json:"streams,omitempty"`
	Problem  string   `json:"problem,omitempty"` // why there are no streams
}

// Stream is one of a device's profiles.
type Stream struct {
	Profile string `json:"profile,omitempty"` // the device's name for it
	Codec   string `json:"codec,omitempty"`
	Width   int    `json:"width,omitempty"`
	Height  int    `json:"height,omitempty"`
	URL     string `json:"url"` // rtsp://, without a user
}

// Find returns the devices that answer, in the order of their addresses. A device that cannot be asked for its streams
// has a Problem. It returns an error if nobody could be asked at all, or ctx ends before devices have had their time.
func (f *Finder) Find(ctx context.Context) ([]Device, error) {
	all, err := f.search(ctx)
	if err != nil {
		return nil, err
	}
	devices := make([]Device, len(all))
	turn := make(chan struct{}, maxAsked)
	var asking sync.WaitGroup
	for i := range all {
		turn <- struct{}{}
		asking.Go(func() {
			devices[i] = f.ask(ctx, &all[i])
			<-turn
		})
	}
	asking.Wait()
	return devices, nil
}

// ask asks one device.
func (f *Finder) ask(ctx context.Context, at *found) Device {
	d := Device{ID: at.id, Address: at.address.String(), Name: at.name, Hardware: at.hardware, Location: at.location}
	service, err := at.service()
	if err == nil {
		d.Streams, err = newDevice(f, at.address).streams(ctx, service)
	}
	switch {
	case err == nil:
	case errors.Is(err, errDenied) && f.User == "":
		d.Problem = "needs a user name and password"
	case errors.Is(err, errDenied):
		d.Problem = "refuses this user name and password"
	case errors.Is(err, context.DeadlineExceeded):
		d.Problem = "takes too long to answer"
	default:
		d.Problem = clean(err.Error())
	}
	return d
}
