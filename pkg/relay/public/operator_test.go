package public

import (
	"net/netip"

	"culvert.dev/pkg/auth"
)

// operatorsOf are those of tests.
func operatorsOf(token string, _ netip.Addr) (auth.Identity, bool) {
	switch token {
	case "operator":
		return auth.Identity{Operator: "alice", Role: auth.Operate, Token: "1"}, true
	case "viewer":
		return auth.Identity{Operator: "victor", Role: auth.Viewer, Token: "2"}, true
	}
	return auth.Identity{}, false
}
