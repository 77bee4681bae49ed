// Package netem is a network link for tests: two network namespaces, joined by an
// emulator that sees each packet, with a rate, delay, loss and a queue, that can be broken
// as a whole or flow by flow, and that can duplicate and reorder. It is for Linux and needs root.
//
//	l, err := netem.New(netem.Config{Loss: 0.01})
//	defer l.Close()
//	err = l.Inside.Do(func() error { return cmd.Start() }) // the process lives inside
//	l.Break(netem.Fault{FromInside: true})                 // what it sends disappears
//
// Each namespace has a loopback of its own. Nothing of the machine can be reached from
// one, and both are gone when the processes in them are. What may stay behind is a word
// in net.ipv4.tcp_allowed_congestion_control.
//
// Invariants: packets of a flow are not reordered, and a packet that was let in is delivered
// once or not at all, unless Config.Reorder and Config.Duplicate ask for it; a fault holds for packets that are let in after Break has returned.
package netem
