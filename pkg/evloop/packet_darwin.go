package evloop

import "golang.org/x/sys/unix"

const ipPktinfo = unix.IP_PKTINFO
