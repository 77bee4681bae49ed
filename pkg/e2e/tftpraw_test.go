//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// Packets of TFTP, as rfc1350#section-5 and rfc2347 have them.
const (
	opRRQ, opWRQ, opDATA, opACK, opERROR, opOACK = 1, 2, 3, 4, 5, 6
)

// tftpRequest is a request in octet mode.
func tftpRequest(op byte, name string, options ...string) []byte {
	b := append([]byte{0, op}, name...)
	b = append(b, "\x00octet\x00"...)
	for _, o := range options {
		b = append(append(b, o...), 0)
	}
	return b
}

// rom is what a boot ROM is: it sends one packet, waits for the next one, and sends again what it has sent.
type rom struct {
	c    *net.UDPConn
	peer netip.AddrPort
	told bool // peer has answered
	sent []byte
	buf  []byte
}

// newROM has a socket that is to be closed, and speaks to the relay's port.
func newROM(t testing.TB, n *netem.Namespace, addr string) *rom {
	t.Helper()
	return &rom{c: listenUDP(t, n), peer: netip.MustParseAddrPort(addr), buf: make([]byte, 1<<16)}
}

// errTFTP is what a peer has said.
type errTFTP struct {
	code uint16
	text string
}

func (e *errTFTP) Error() string { return fmt.Sprintf("error %d: %s", e.code, e.text) }

func (m *rom) send(b []byte) {
	m.sent = append(m.sent[:0], b...)
	m.c.WriteToUDPAddrPort(b, m.peer)
}

// next is the next packet of the peer, which may answer from another port than it is asked at. It is asked again each
// second.
func (m *rom) next() (op uint16, rest []byte, err error) {
	for range 40 {
		m.c.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := m.c.ReadFromUDPAddrPort(m.buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			m.send(bytes.Clone(m.sent))
			continue
		case err != nil:
			return 0, nil, err
		case n < 4 || m.buf[0] != 0 || m.told && from != m.peer:
			continue // of somebody who takes the port for that of a relay's QUIC, or of a client that had it before
		}
		m.peer, m.told = from, true
		op, rest = binary.BigEndian.Uint16(m.buf), m.buf[2:n]
		if op == opERROR {
			text, _, _ := bytes.Cut(rest[2:], []byte{0})
			return op, rest, &errTFTP{binary.BigEndian.Uint16(rest), string(text)}
		}
		return op, rest, nil
	}
	return 0, nil, errors.New("nobody answers")
}

// read gets a file by blocks of that size and compares it with what it should be.
func (m *rom) read(name string, block int, want []byte) error {
	m.told = false
	m.send(tftpRequest(opRRQ, name, "blksize", strconv.Itoa(block), "tsize", "0"))
	number, size := uint16(0), 0 // that has come
	for {
		op, rest, err := m.next()
		if err != nil {
			return err
		}
		switch {
		case op == opOACK && size == 0:
			for o := bytes.Split(rest, []byte{0}); len(o) > 2; o = o[2:] {
				switch string(o[0]) {
				case "blksize":
					if block, err = strconv.Atoi(string(o[1])); err != nil {
						return err
					}
				case "tsize":
					if string(o[1]) != strconv.Itoa(len(want)) {
						return fmt.Errorf("the size is %s, want %d", o[1], len(want))
					}
				}
			}
			m.send([]byte{0, opACK, 0, 0})
		case op == opDATA && binary.BigEndian.Uint16(rest) == number+1:
			data := rest[2:]
			if size+len(data) > len(want) || !bytes.Equal(data, want[size:size+len(data)]) {
				return fmt.Errorf("block %d is not what it should be", number+1)
			}
			size += len(data)
			number++
			m.send(binary.BigEndian.AppendUint16([]byte{0, opACK}, number))
			if len(data) < block {
				if size != len(want) {
					return fmt.Errorf("%d of %d bytes look complete", size, len(want))
				}
				return nil
			}
		case op == opDATA: // again
		default:
			return fmt.Errorf("opcode %d in the middle", op)
		}
	}
}

// write puts content by blocks of 512 bytes, and stops after some of them, without a word, if there are more.
func (m *rom) write(name string, content []byte, blocks int) error {
	m.told = false
	m.send(tftpRequest(opWRQ, name))
	for n := 0; ; {
		op, rest, err := m.next()
		if err != nil {
			return err
		}
		if op != opACK {
			return fmt.Errorf("opcode %d in the middle", op)
		}
		if binary.BigEndian.Uint16(rest) != uint16(n) {
			continue // again
		}
		if n*512 > len(content) || n == blocks {
			return nil
		}
		n++
		data := content[(n-1)*512 : min(n*512, len(content))]
		m.send(append(binary.BigEndian.AppendUint16([]byte{0, opDATA}, uint16(n)), data...))
	}
}

// fail tells the peer that the transfer is over.
func (m *rom) fail() { m.send([]byte("\x00\x05\x00\x00interrupted\x00")) }
