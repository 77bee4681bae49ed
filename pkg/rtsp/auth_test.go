package rtsp

import (
	"strings"
	"testing"
)

func response401(challenges ...string) *Message {
	m := &Message{Status: 401}
	for _, c := range challenges {
		m.Fields = append(m.Fields, Field{[]byte("WWW-Authenticate"), []byte(c)})
	}
	return m
}

// What a client writes for each kind of challenge is what a server with the hash accepts.
func TestDigest(t *testing.T) {
	for _, test := range []struct {
		what, challenge string
		contains        []string
	}{
		{"Hikvision", `Digest realm="IP Camera(12345)", nonce="4e5749344e7a4d354d6a4936", stale="FALSE"`, []string{`realm="IP Camera(12345)"`}},
		{"qop", `Digest realm="r", domain="/", qop="auth-int, auth", nonce="n", opaque="o\"p", algorithm=MD5`, []string{"qop=auth,", "nc=00000001", `opaque="o\"p"`, "algorithm=MD5"}},
		{"SHA-256", `Digest realm="a \"quoted\" one", nonce="n", algorithm="SHA-256", qop="auth"`, []string{"algorithm=SHA-256", `realm="a \"quoted\" one"`}},
		{"unquoted", `digest realm=r, nonce=abc/def==, algorithm=md5`, []string{`nonce="abc/def=="`}},
		{"after Basic", `Basic realm="a, b", Digest realm="r", nonce="n"`, nil},
		{"without spaces", `Digest realm="r",nonce="n",qop="auth"`, nil},
	} {
		c := Client{User: `us"er`, Password: "secret"}
		if !c.Challenge(response401(test.challenge)) {
			t.Errorf("%s: not worth another try", test.what)
			continue
		}
		f, ok := c.Authorization([]byte("DESCRIBE"), []byte("rtsp://h/x"), nil)
		if !ok || string(f.Name) != "Authorization" {
			t.Fatal(test.what, f, ok)
		}
		for _, want := range append(test.contains, `username="us\"er"`, `uri="rtsp://h/x"`) {
			if !strings.Contains(string(f.Value), want) {
				t.Errorf("%s: %s has no %s", test.what, f.Value, want)
			}
		}
		a, err := ParseAuthorization(f.Value)
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		ha1, _ := hash(a.Algorithm, `us"er`, a.Realm, "secret")
		if !a.Verify("DESCRIBE", ha1) || !a.Verify("DESCRIBE", strings.ToUpper(ha1)) {
			t.Errorf("%s: %s is not accepted", test.what, f.Value)
		}
		wrong, _ := hash(a.Algorithm, `us"er`, a.Realm, "Secret")
		if a.Verify("SETUP", ha1) || a.Verify("DESCRIBE", wrong) || a.Verify("DESCRIBE", "") {
			t.Errorf("%s: accepted with another method, password or no hash", test.what)
		}
	}
}

// The examples of the two RFCs.
func TestDigestExamples(t *testing.T) {
	for _, v := range []string{
		`Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", qop=auth, nc=00000001, cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1", opaque="5ccc069c403ebaf9f0171e9517f40e41"`,
		`Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", algorithm=MD5, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="8ca523f5e9506fed4657c9700eebdbec", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
		`Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, response="753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
	} {
		a, err := ParseAuthorization([]byte(v))
		if err != nil {
			t.Fatal(err)
		}
		password := "Circle of Life"
		if a.Realm == "testrealm@host.com" {
			password = "Circle Of Life"
		}
		ha1, _ := hash(a.Algorithm, a.User, a.Realm, password)
		if !a.Verify("GET", ha1) {
			t.Errorf("not accepted: %s", v)
		}
	}
}

func TestChallengeIsTheBest(t *testing.T) {
	md5, sha := `Digest realm="r", nonce="m"`, `Digest realm="r", nonce="s", algorithm=SHA-256`
	for _, test := range []struct {
		fields []string
		want   string // begins so; empty if there is nothing to try
		has    string
	}{
		{[]string{`Basic realm="r"`, md5, sha}, "Digest", `nonce="s"`},
		{[]string{sha + ", " + md5}, "Digest", `nonce="s"`},
		{[]string{md5, `Basic realm="r"`}, "Digest", `nonce="m"`},
		{[]string{`Digest realm="r", nonce="x", algorithm=SHA-512-256`, `Basic realm="r"`}, "Basic dTpw", ""},
		{[]string{`Digest realm="r", nonce="x", algorithm=MD5-sess`}, "", ""},
		{[]string{`Digest realm="r", nonce="x", qop="rubbish"`}, "", ""},
		{[]string{`Digest realm="r"`}, "", ""},
		{[]string{`Negotiate`, `NTLM abc==`}, "", ""},
		{[]string{`Negotiate, Basic realm="r"`}, "Basic dTpw", ""},
		{nil, "", ""},
		{[]string{`=,"`}, "", ""},
	} {
		c := Client{User: "u", Password: "p"}
		if got := c.Challenge(response401(test.fields...)); got != (test.want != "") {
			t.Errorf("%q: worth another try: %t", test.fields, got)
		}
		f, ok := c.Authorization([]byte("OPTIONS"), []byte("*"), nil)
		if ok != (test.want != "") || !strings.HasPrefix(string(f.Value), test.want) || !strings.Contains(string(f.Value), test.has) {
			t.Errorf("%q: %s", test.fields, f.Value)
		}
	}
	if (&Client{}).Challenge(response401(md5)) {
		t.Error("without a user there is something to try")
	}
}

func TestWrongPasswordIsTriedOnce(t *testing.T) {
	use := func(c *Client) { c.Authorization([]byte("DESCRIBE"), []byte("rtsp://h/"), nil) }
	c := Client{User: "u", Password: "p"}
	for i, nonce := range []string{"a", "b", "c"} {
		if worth := c.Challenge(response401(`Digest realm="r", nonce="` + nonce + `"`)); worth != (i == 0) {
			t.Errorf("challenge %d is worth another try: %t", i, worth)
		}
		use(&c)
	}
	// Nor is it for requests that were sent at once.
	use(&c)
	use(&c)
	if c.Challenge(response401(`Digest realm="r", nonce="c"`)) {
		t.Error("a wrong password is tried again")
	}
	// A nonce that was good for some requests has expired.
	use(&c)
	c.Accepted()
	use(&c)
	if !c.Challenge(response401(`Digest realm="r", nonce="d"`)) {
		t.Error("an expired nonce is taken for a wrong password")
	}
	// A server that calls each nonce stale gets an end.
	worth := 0
	for range 10 {
		use(&c)
		if c.Challenge(response401(`Digest realm="r", nonce="e", stale=TRUE`)) {
			worth++
		}
	}
	if worth != maxRefused {
		t.Errorf("%d stale nonces in a row are tried, want %d", worth, maxRefused)
	}
	// Who has had a digest does not get the password itself.
	c.Accepted()
	if c.Challenge(response401("Basic realm=r")) {
		t.Error("Basic is tried after Digest")
	}
	if f, _ := c.Authorization([]byte("DESCRIBE"), []byte("rtsp://h/"), nil); !strings.HasPrefix(string(f.Value), "Digest ") {
		t.Errorf("after that the server gets %s", f.Value)
	}
	c = Client{User: "u", Password: "p"}
	if !c.Challenge(response401("Basic realm=r")) {
		t.Error("Basic is not tried")
	}
	use(&c)
	use(&c)
	if c.Challenge(response401("Basic realm=r")) {
		t.Error("Basic is tried again")
	}
}

func TestAuthorizationRefused(t *testing.T) {
	good := `Digest username="u", realm="r", nonce="n", uri="*", response="0123456789abcdef0123456789abcdef"`
	if _, err := ParseAuthorization([]byte(good)); err != nil {
		t.Fatal(err)
	}
	if a, err := ParseAuthorization([]byte("bAsIc dTpwOnA=")); err != nil || !a.Basic || a.User != "u" || a.Password != "p:p" {
		t.Errorf("%+v %v", a, err)
	}
	for _, v := range []string{
		"", "Bearer x", "Basic", "Basic ???", "Basic dTpw=", "Basic dXA=",
		good + `, nonce="m"`, good + ", =", good + `, algorithm=MD5-sess`, good + `, algorithm=SHA-256`,
		good + `, qop=auth`, good + `, qop=auth, nc=1, cnonce="c"`, good + `, qop=auth-int, nc=00000001, cnonce="c"`,
		strings.Replace(good, "0123456789abcdef", "", 1), "Digest " + strings.Repeat("x", maxAuthorization),
	} {
		if a, err := ParseAuthorization([]byte(v)); err == nil {
			t.Errorf("%.80q is taken as %+v", v, a)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	f.Add(`Digest username="u", realm="r", nonce="n", uri="rtsp://h:8003/gate", response="0123456789abcdef0123456789abcdef"`)
	f.Add(`Digest username="u", realm="r", nonce="n", uri="/gate", algorithm="MD5", qop=auth, nc=00000002, cnonce="f0", response="0123456789abcdef0123456789abcdef"`)
	f.Add("Basic dTpw")
	f.Add(`Digest realm="IP Camera(12345)", nonce="4e57", stale="FALSE", Basic realm="x"`)
	f.Fuzz(func(t *testing.T, v string) {
		if a, err := ParseAuthorization([]byte(v)); err == nil && !a.Basic {
			a.Verify("DESCRIBE", strings.Repeat("0", len(a.Response)))
			again, err := ParseAuthorization([]byte(a.digest()))
			if len(a.digest()) <= maxAuthorization && (err != nil || again != a) {
				t.Fatalf("%+v was written as %s\nand read as %+v: %v", a, a.digest(), again, err)
			}
		}
		c := Client{User: "u", Password: "p"}
		if !c.Challenge(response401(v)) {
			return
		}
		f, ok := c.Authorization([]byte("DESCRIBE"), []byte("rtsp://h/"), nil)
		if !ok {
			t.Fatalf("%q is worth a try that does not come", v)
		}
		if _, err := ParseAuthorization(f.Value); err != nil && !strings.Contains(string(f.Value), "auth-int") && len(f.Value) <= maxAuthorization {
			t.Fatalf("%q is answered with %s: %v", v, f.Value, err)
		}
	})
}
