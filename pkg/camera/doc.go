// Package camera knows of a camera's stream what a relay has to: which tracks there are, where in their RTP
// packets a picture begins, and at which of them a viewer can start. It does no I/O.
//
//	d, err := camera.Parse(sdp) // what DESCRIBE was answered
//	…
//	var r camera.Reader // of one track
//	r.Reset(&d.Tracks[0])
//	p := camera.Packet{Track: 0, Data: b}
//	if err := r.Read(&p); err == nil && p.Begins {
//		// p is the first packet of an access unit. r.Access says whether a viewer can
//		// start there, as soon as it is not Undecided: some of the unit's packets may be needed for that.
//	}
//
// # Invariants
//
//   - A description of any length and content is read in time and memory proportional to its first [MaxDescription] bytes.
//   - Whatever a camera sends is passed on. A track in a format that is not known here begins an access unit whenever
//     its timestamp changes, and a viewer can start at each of them.
//   - What a unit says of itself changes once: from Undecided to Key or Delta. Parameter sets and the like, which come
//     ahead of a picture, belong to its unit, whatever timestamp and marker they have.
//   - Whatever a camera sends, nothing here panics, also where a library reads it.
//   - What is offered to viewers has no address of the camera, and no line that was not understood.
package camera
