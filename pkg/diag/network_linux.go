package diag

import (
	"net"
	"os"
	"syscall"

	"culvert.dev/pkg/rest"
)

func routes() ([]Route, error) {
	list := []Route{}
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, rest.Internal(err)
	}
	defer f.Close()
	list = append(list, parseRoutes4(f)...)
	if g, err := os.Open("/proc/net/ipv6_route"); err == nil { // there is none without IPv6
		defer g.Close()
		list = append(list, parseRoutes6(g)...)
	}
	return list, nil
}

// neighbours asks the kernel by netlink, which knows those of IPv6, too. Where that is not allowed there is /proc.
func neighbours() ([]Neighbour, error) {
	names := make(map[int]string)
	name := func(index int) string {
		if n, ok := names[index]; ok {
			return n
		}
		if i, err := net.InterfaceByIndex(index); err == nil {
			names[index] = printable(i.Name)
		} else {
			names[index] = ""
		}
		return names[index]
	}
	list := []Neighbour{}
	if b, err := syscall.NetlinkRIB(syscall.RTM_GETNEIGH, syscall.AF_UNSPEC); err == nil {
		return append(list, parseNeighbours(b, name)...), nil
	}
	f, err := os.Open("/proc/net/arp")
	if err != nil {
		return nil, rest.Internal(err)
	}
	defer f.Close()
	return append(list, parseARP(f)...), nil
}
