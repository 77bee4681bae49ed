// Package auth answers who is asking: the keys of sites, the proof that a link
// belongs to one, the tokens that sites join with, the operators and their tokens, the
// certificates that a relay makes for itself, and the passwords of visitors.
//
//	pub, err := auth.GenerateKey("office.key") // on the private relay
//	key, err := auth.ReadKey("office.key")
//	sig := auth.SignLink(key, "office", exporter)
//
//	ok := auth.VerifyLink(pub, "office", exporter, sig) // on the public relay
//
//	hash, err := auth.HashPassword(password) // tunnelctl password
//	h, err := auth.ParsePasswordHash(hash)   // on the public relay
//	ok = h.Verify(password)
//
//	operators, err := auth.OpenOperators(dir) // on the public relay
//	id, ok := operators.Verify(token, address)
//	stop := operators.Follow(id, end) // end is called when the token is revoked
//
// Invariants: a private key never leaves the machine that made it, and its file
// is readable by its owner alone. Of a token the relay keeps only a digest.
// Secrets are compared in constant time. Files are replaced as a whole, so that a
// crash leaves the old or the new one. No hash of a password costs more than a
// fixed amount of memory and time to verify. Nothing here turns verification off.
package auth
