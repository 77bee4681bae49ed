package public

import (
	"net/netip"

	"culvert.dev/pkg/rtsp"
)

// authenticate decides who a request of a player is from. It answers, holds, or lets a user in.
func (u *users) authenticate(l *loop, addr netip.Addr, m *rtsp.Message) decision {
	authorization := m.Get("authorization")
	d, ok := u.check(l, addr, authorization)
	if ok {
		d.user, _, _ = credentials(authorization)
	}
	return d
}
