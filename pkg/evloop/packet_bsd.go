//go:build freebsd || netbsd || openbsd || dragonfly

package evloop

// ipPktinfo is missing: these systems tell a destination by IP_RECVDSTADDR, and set a source each in its own way.
const ipPktinfo = 0
