package rtsp

// Client authenticates requests to a server that asks for it.
type Client struct {
	User, Password string
}

// Challenge takes the WWW-Authenticate fields of a 401 response and reports whether it is worth asking
// again with what Authorization returns.
func (c *Client) Challenge(m *Message) bool { return false }

// Authorization returns the field for a request, if there has been a challenge. url is what the request
// line has.
func (c *Client) Authorization(method, url, body []byte) (Field, bool) { return Field{}, false }

// Authorization is what a client sent to authenticate itself.
type Authorization struct {
	Basic          bool   // otherwise Digest
	User, Password string // the password of Basic
	Realm, Nonce   string // of Digest
	URI            string
	Algorithm      string // "MD5", "SHA-256"
	Response       string
	QOP, NC        string
	CNonce, Opaque string
}

// ParseAuthorization reads an Authorization field.
func ParseAuthorization(v []byte) (Authorization, error) {
	return Authorization{}, badf("Authorization")
}

// Verify reports whether a Digest is that of a request with that method and the hash of user, realm and
// password, in hexadecimal, of the same algorithm.
func (a *Authorization) Verify(method, ha1 string) bool { return false }
