// Package tftpd serves TFTP on an event loop: one UDP port, thousands of transfers, and files that come from wherever a
// [Store] has them.
//
//	srv := &tftpd.Server{Find: func(name string, visitor netip.AddrPort) (*tftpd.Share, string, *tftp.Error) {
//		return share, name, nil
//	}}
//	err := srv.Listen(core.Loop(0), "udp", ":69")
//	defer srv.Close()
//
// A [Server] parses requests and tells transfers apart; what is said in one is of pkg/tftp. It asks Find whose file a name is. That
// is a [Share]: a Store, what may be done with it, and the loop that its transfers run on, which need not be
// that of the port.
//
// A [Client] is the other side: a transfer of its is the End of a file, and an [Origin] makes a Store of another server by it.
//
// # Invariants
//
//   - A transfer has no goroutine, and no buffer but that of its file. It belongs to the loop of its Share, and so does the Store:
//     none of them needs a lock. A datagram for another loop is copied and posted, once a turn for all there are.
//   - A request that comes again is the transfer that it has begun, also while the file is being opened.
//   - Nothing larger than the request goes to an address that has not shown that it gets what is sent to it, but for the one DATA
//     that a request without options demands; of those there is a bounded number of bytes a second, and each is
//     repeated only when the request is. An ERROR is never longer than what it answers (or 5 bytes, of which none has fewer), and no ERROR is answered.
//   - A [Library] fetches no further ahead than its readers want, and what its [Cache] keeps never passes the bound: an image is charged before its
//     bytes come. A reader has the bytes of one version of a file.
//   - Addresses that prove nothing make room for those that do; a transfer whose peer has proven itself is never ended
//     in favour of another one.
//   - A client gets the last block of a file only if the file has come whole, and the last acknowledgement only when the file is
//     safe. What goes wrong is told as an ERROR whose text is constant for each cause.
package tftpd
