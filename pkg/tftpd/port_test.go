package tftpd

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
)

// transfer returns that of c.
func (b *bench) transfer(c *client) (t *Transfer) {
	on(b.core.Loop(0), func() { t = b.port.peers[evloop.PacketAddr{Remote: addrPort(c.LocalAddr()), Local: b.Addr().Addr()}] })
	return t
}

// heard waits until the Server has heard all that was said before.
func (b *bench) heard() {
	b.t.Helper()
	b.client().want2(errorPacket(1, "File n"), request(1, "no", "octet"))
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.UDPAddr).AddrPort() }

// TestAgain repeats a request while its file is being opened, and when it was.
func TestAgain(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		gate := make(chan struct{})
		b := newBench(t, w, func(b *bench) { b.store.gate = gate })
		c := b.client()
		for range 5 {
			c.ask(1, "boot/hello", "octet")
		}
		b.heard()
		close(gate)
		c.want(data(1, []byte("hello, world")))
		c.ask(1, "boot/hello", "octet") // at once, so it is a duplicate on the way
		c.say(ack(1))
		if errs := b.errs(); len(errs) != 1 || errs[0] != nil {
			t.Errorf("ended by %v", errs)
		}
		if n := b.store.opens(); n != 1 {
			t.Errorf("the file was opened %d times", n)
		}
		c.wantSilence(20 * time.Millisecond)
	})
}

// want2 says something and wants an answer.
func (c *client) want2(answer, b []byte) {
	c.t.Helper()
	c.say(b)
	c.want(answer)
}

// TestReplace asks for something else from the same port: while a file is being opened, and in the middle of one.
func TestReplace(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		gate := make(chan struct{})
		b := newBench(t, w, func(b *bench) {
			b.store.gate = gate
			b.store.files["large"] = content(5000)
		})
		c := b.client()
		c.ask(1, "boot/nothing", "octet")
		c.ask(1, "boot/large", "octet")
		b.heard()
		close(gate)
		c.want(data(1, content(5000)[:512]))
		c.want2(data(2, content(5000)[512:1024]), ack(1))
		c.ask(1, "boot/hello", "octet")
		c.want(data(1, []byte("hello, world")))
		c.say(ack(1))
		errs := b.errs()
		if len(errs) != 3 || errs[0] != ErrReplaced || errs[1] != ErrReplaced || errs[2] != nil {
			t.Errorf("ended by %v", errs)
		}
		if n := b.store.count(func() int { return b.store.cancels }); n != 1 {
			t.Errorf("%d openings were given up", n)
		}
	})
}

// TestAnew repeats a request in the middle of a transfer: at once, when it is a duplicate, and after a pause, when the
// client has forgotten the transfer.
func TestAnew(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, func(b *bench) { b.store.files["large"] = content(5000) })
		c := b.client()
		c.ask(1, "boot/large", "octet")
		c.want(data(1, content(5000)[:512]))
		c.want2(data(2, content(5000)[512:1024]), ack(1))
		c.ask(1, "boot/large", "octet")
		c.want2(data(3, content(5000)[1024:1536]), ack(2)) // so the request has changed nothing
		tr := b.transfer(c)
		on(b.share.Loop, func() { tr.heard = tr.heard.Add(-pauseTime) })
		got, err := c.get("boot/large")
		if err != nil || !bytes.Equal(got, content(5000)) {
			t.Fatalf("anew: %d bytes, %v", len(got), err)
		}
		if errs := b.errs(); len(errs) != 2 || errs[0] != ErrReplaced || errs[1] != nil {
			t.Errorf("ended by %v", errs)
		}
	})
}

// TestLate sends what comes late: ACKs of a file that was read, of an ERROR, and the last block of one that was written.
func TestLate(t *testing.T) {
	t.Parallel()
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, nil)
		c := b.client()
		if _, err := c.get("boot/hello"); err != nil {
			t.Fatal(err)
		}
		b.settled()
		c.say(ack(1))
		c.say(ack(1))

		d := b.client()
		if _, err := d.get("no"); err == nil {
			t.Fatal("there is no such file")
		}
		d.say(ack(1)) // as tftp-hpa does
		if _, err := d.get("boot/no"); err == nil {
			t.Fatal("there is no such file")
		}
		b.settled()
		d.say(ack(1))

		e := b.client()
		if err := e.put("boot/new", []byte("new")); err != nil {
			t.Fatal(err)
		}
		b.settled()
		tr := b.transfer(e)
		if tr == nil {
			t.Fatal("the transfer is forgotten")
		}
		time.Sleep(110 * time.Millisecond) // what comes sooner cannot be the answer to the ACK's loss
		e.want2(ack(1), data(1, []byte("new")))
		e.ask(2, "boot/new", "octet") // which is another one
		e.want(ack(0))
		e.want2(ack(1), data(1, []byte("newer")))
		b.settled()

		b.heard()
		for _, c := range []*client{c, d} {
			c.wantSilence(10 * time.Millisecond)
		}
		if n := b.Stats().ErrorsSent; n != 3 {
			t.Errorf("%d ERRORs were sent", n)
		}
		tr = b.transfer(e)
		on(b.share.Loop, func() {
			tr.machine.Tick(tr.now().Add(time.Minute))
			tr.linger()
		})
		b.settled()
		if b.transfer(e) != nil {
			t.Error("the transfer is never forgotten")
		}
		e.say(data(1, []byte("newer")))
		e.wantSilence(20 * time.Millisecond)
	})
}

// TestUnknown sends what belongs to no transfer.
func TestUnknown(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, nil)
		c := b.client()
		c.want2(errorPacket(5, ""), ack(1))
		c.want2(errorPacket(5, "Unknown transfer."), data(1, content(100)))
		c.want2(errorPacket(5, ""), []byte{0, 6})
		c.want2(errorPacket(4, ""), []byte{0, 0})
		c.want2(errorPacket(4, ""), nil)
		c.want2(errorPacket(4, "This is no"), append([]byte{0, 9}, content(13)...))
		for _, b := range [][]byte{
			errorPacket(5, "Unknown transfer."), errorPacket(0, ""), {0, 5}, // no ERROR is answered
			request(1, strings.Repeat("x", 520), "octet"),
			request(1, "silent", "octet"),
		} {
			c.say(b)
		}
		c.want2(errorPacket(1, "File not fo"), request(1, "boot/no", "octet"))
		for _, f := range [][]string{{"boot/hello"}, {"boot/hello", "mail"}, {"../boot/hello", "octet"}, {`..\boot/hello`, "octet"}, {"boot/\x01", "octet"}, {"", "octet"}} {
			c.ask(1, f...)
			if got, n := c.hear(), len(request(1, f...)); got[1] != 5 || len(got) > n {
				t.Errorf("%q is answered with %s", f, show(got))
			}
		}
		c.want2(data(1, []byte("hello, world")), request(1, `\boot\hello`, "octet"))
		c.say(ack(1))
		b.settled()
		c.wantSilence(10 * time.Millisecond)
		if st := b.Stats(); st.Total != 2 || st.Refused.NotFound != 1 || st.Refused.Malformed+st.Refused.Policy != 9 || st.ErrorsSent != 13 {
			t.Errorf("counted %+v", st)
		}
	})
}

// TestUnheard has a client whose first packets are lost until the server has given it up: the next one begins the transfer again.
func TestUnheard(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, func(b *bench) { b.store.files["two"] = content(1000) })
		giveUp := func(c *client) {
			tr := b.transfer(c)
			on(tr.lane.loop, func() {
				tr.calling = true
				tr.machine.Tick(tr.now().Add(time.Minute))
				tr.settle()
			})
			b.settled()
		}
		reader, writer, choosy := b.client(), b.client(), b.client()
		reader.ask(1, "boot/two", "octet")
		reader.want(data(1, content(1000)[:512]))
		giveUp(reader)
		writer.ask(2, "boot/new", "octet")
		writer.want(ack(0))
		giveUp(writer)
		answer := append([]byte("\x00\x06"), "blksize\x00600\x00"...)
		choosy.ask(1, "boot/two", "octet", "blksize", "600")
		choosy.want(answer)
		choosy.want2(data(1, content(1000)[:600]), ack(0))
		giveUp(choosy)

		reader.say(ack(1))
		reader.want(data(1, content(1000)[:512])) // as if it had just asked
		reader.want(data(2, content(1000)[512:]))
		reader.say(ack(2))
		writer.say(data(1, []byte("x")))
		writer.want(ack(0))
		writer.want(ack(1))
		choosy.say(ack(0))
		choosy.want(answer)
		choosy.want(data(1, content(1000)[:600]))
		choosy.want2(data(2, content(1000)[600:]), ack(1))
		choosy.say(ack(2))
		if errs := b.errs(); len(errs) != 6 || errs[3] != nil || errs[4] != nil || errs[5] != nil {
			t.Errorf("ended by %v", errs)
		}
	})
}
