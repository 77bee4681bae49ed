package public

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"culvert.dev/pkg/http1"
)

func TestIsSecret(t *testing.T) {
	for _, name := range strings.Fields(`password Password newPassword new_password user[password] passwd pwd pass token access_token accessToken
		X-Auth-Token csrf-token secret client_secret clientSecret SECRET_KEY key api_key apiKey apikey X-Api-Key x-amz-security-token code auth_code authCode
		otp pin CVV refreshToken privateKey session_id sessionid signature jwt credentials authorization PASSWORD_CONFIRMATION oauth.token sshkey id_token keys`) {
		if !isSecret(name) {
			t.Errorf("%q is taken for plain", name)
		}
	}
	for _, name := range strings.Fields(`name id user email statusCode status_code error_code errorCode country_code zipCode postcode postal_code keyboard keyword
		monkey author passenger compass spinner pinned encode decode content-type accept host date path public_key publicKey description value expires 1 é`) {
		if isSecret(name) {
			t.Errorf("%q is taken for a secret", name)
		}
	}
	isSecret("")
	isSecret(strings.Repeat("é", 5000))
}

func TestRedactFields(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"Authorization", "Bearer abc.def", "Bearer [redacted]"},
		{"authorization", "Basic dXNlcjpw", "Basic [redacted]"},
		{"Authorization", "justakey", "[redacted]"},
		{"Authorization", "a-secret-as-long-as-a-scheme-may-never-be and more", "[redacted]"},
		{"Proxy-Authorization", "Basic abc", "Basic [redacted]"},
		{"Cookie", "a=1; b=2", "[redacted]"},
		{"Set-Cookie", "sid=1; Path=/; HttpOnly", "[redacted]"},
		{"X-Api-Key", "abc", "[redacted]"},
		{"X-CSRF-Token", "abc", "[redacted]"},
		{"Accept", "text/html, */*", "text/html, */*"},
		{"Location", "https://a.test/cb?code=abc&state=xyz#access_token=def&x=1", "https://a.test/cb?code=[redacted]&state=xyz#access_token=[redacted]&x=1"},
		{"Referer", "https://user:pw@a.test/?q=1", "https://[redacted]@a.test/?q=1"},
		{"Link", `</a?token=abc>; rel="next", </b?page=2>; rel="prev"`, `</a?token=[redacted]>; rel="next", </b?page=2>; rel="prev"`},
		{"From", "me@example.com", "me@example.com"},
		{"X-Original-Url", "/a?pass%77ord=abc", "/a?pass%77ord=[redacted]"},
	} {
		if got := redactField(c.name, c.value); got != c.want {
			t.Errorf("%s: %s becomes %q, want %q", c.name, c.value, got, c.want)
		}
	}
}

// shown is what is shown of a body with those fields.
func shown(body string, fields ...string) Body {
	k := keptBody{bytes: []byte(body), size: int64(len(body))}
	var list []http1.Field
	for i := 0; i < len(fields); i += 2 {
		list = append(list, field(fields[i], fields[i+1]))
	}
	return k.show(list)
}

func TestRedactBodies(t *testing.T) {
	zip := func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write([]byte(s))
		w.Close()
		return b.String()
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	w.Write([]byte(`{"token":"abc"}`))
	w.Close()
	const js, form = "application/json", "application/x-www-form-urlencoded"
	const parts = "--B\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nbob\r\n--B\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n%s\r\n--B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.json\"\r\nContent-Type: application/json\r\n\r\n{\"token\":\"%s\"}\r\n--B--\r\n"
	for _, c := range []struct{ kind, body, want string }{
		{js, `{"user":"bob","password":"p\"w","n":[1,2]}`, `{"user":"bob","password":"[redacted]","n":[1,2]}`},
		{js, `{"code" : 123456 , "ok": true}`, `{"code" : "[redacted]" , "ok": true}`},
		{js, `{"token":null,"hasToken":true,"secret":""}`, `{"token":null,"hasToken":true,"secret":"[redacted]"}`},
		{js, `{"secret":{"a":"}","b":[1,"]"]},"x":1}`, `{"secret":"[redacted]","x":1}`},
		{js, `{"keys":["a","b"],"x":[{"api_key":"k"}]}`, `{"keys":"[redacted]","x":[{"api_key":"[redacted]"}]}`},
		{js, `{"pass\u0077ord":"x"}`, `{"pass\u0077ord":"[redacted]"}`},
		{js, `{"body":"{\"token\":\"abc\",\"n\":1}"}`, `{"body":"{\"token\":\"[redacted]\",\"n\":1}"}`},
		{js, `{"url":"https://a.test/?token=abc&n=1"}`, `{"url":"https://a.test/?token=[redacted]&n=1"}`},
		{js, `{"url":"https://bob:pw@a.test/"}`, `{"url":"https://[redacted]@a.test/"}`},
		{js, `{"password":"cut in the mid`, `{"password":"[redacted]"`},
		{js, `{"password":["cut`, `{"password":"[redacted]"`},
		{js, `{"password":`, `{"password":`},
		{js, `{"a":"{\"password\":\"cut`, `{"a":"{\"password\":\"[redacted]\""`},
		{js, `{"a":"{\"password\":\"cut\u00`, `{"a":"{\"password\":\"[redacted]\""`},
		{"text/plain", `{"password":"x"}`, `{"password":"[redacted]"}`},
		{"", `data: {"token":"x"}` + "\n\n", `data: {"token":"[redacted]"}` + "\n\n"},
		{form, "user=bob&password=x%20y&b=2", "user=bob&password=[redacted]&b=2"},
		{form, "user%5Bpassword%5D=x&code=1&zip_code=2", "user%5Bpassword%5D=[redacted]&code=[redacted]&zip_code=2"},
		{form + "; charset=utf-8", "token=%zz&=&a", "token=[redacted]&=&a"},
		{"", "user=bob&password=x", "user=bob&password=[redacted]"},
		{form, `{"password":"x=1&y","n":1}`, `{"password":"[redacted]","n":1}`}, // curl -d says so of JSON, too
		{form, " [{\"token\":\"x\"}]\n", " [{\"token\":\"[redacted]\"}]\n"},
		{form, "a=1&payload=%7B%22token%22%3A%22x%22%7D", "a=1&payload=%7B%22token%22%3A%22%5Bredacted%5D%22%7D"},
		{form, "payload=%7B%22n%22%3A1%7D", "payload=%7B%22n%22%3A1%7D"},
		{"text/xml", `<s:Login><wsse:Password Type="x">secret</wsse:Password><User>bob</User><Token/></s:Login>`, `<s:Login><wsse:Password Type="x">[redacted]</wsse:Password><User>bob</User><Token/></s:Login>`},
		{"multipart/form-data; boundary=B", fmt.Sprintf(parts, "hunter2", "abc"), fmt.Sprintf(parts, "[redacted]", "[redacted]")},
		{"text/html", `<a href="/x?token=abc&amp;a=1">x</a>`, `<a href="/x?token=[redacted]&amp;a=1">x</a>`},
		{"text/plain", "nothing to see", "nothing to see"},
	} {
		got := shown(c.body, "Content-Type", c.kind)
		if got.Text != c.want || got.Redacted != (c.want != c.body) || got.Binary != nil || got.Size != int64(len(c.body)) {
			t.Errorf("%s %q becomes %+v, want %q", c.kind, c.body, got, c.want)
		}
	}
	for name, c := range map[string]struct {
		got  Body
		want Body
	}{
		"binary":            {shown("\x00\x01\xff", "Content-Type", "image/png"), Body{Binary: []byte("\x00\x01\xff"), Size: 3}},
		"nothing":           {shown(""), Body{}},
		"gzip":              {shown(zip(`{"token":"abc"}`), "Content-Encoding", "gzip"), Body{Text: `{"token":"[redacted]"}`, Size: int64(len(zip(`{"token":"abc"}`))), Redacted: true}},
		"cut gzip":          {shown(zip("hello" + strings.Repeat("x", 100))[:16], "Content-Encoding", "GZIP"), Body{Text: "hello", Size: 16, Truncated: true}},
		"gzip twice":        {shown(zip(zip("hello")), "Content-Encoding", "gzip, gzip"), Body{Text: "hello", Size: int64(len(zip(zip("hello"))))}},
		"zlib":              {shown(z.String(), "Content-Encoding", "deflate"), Body{Text: `{"token":"[redacted]"}`, Size: int64(z.Len()), Redacted: true}},
		"brotli":            {shown(`{"token":"abc"}`, "Content-Encoding", "br"), Body{Size: 15, Redacted: true}},
		"gzip that is none": {shown(`{"token":"abc"}`, "Content-Encoding", "gzip"), Body{Size: 15, Redacted: true}},
		"bomb":              {shown(zip(strings.Repeat("x", 10<<20)), "Content-Encoding", "gzip"), Body{Text: strings.Repeat("x", maxInflated), Size: int64(len(zip(strings.Repeat("x", 10<<20)))), Truncated: true}},
		"cut rune":          {shown("für \xe2\x82"), Body{Text: "für \uFFFD", Size: 6 + 1}},
	} {
		if c.got.Text != c.want.Text || !bytes.Equal(c.got.Binary, c.want.Binary) || c.got.Size != c.want.Size || c.got.Truncated != c.want.Truncated || c.got.Redacted != c.want.Redacted {
			t.Errorf("%s: got %.200v, want %.200v", name, c.got, c.want)
		}
	}
}

const planted = "S3CR3Tvalue"

// What is JSON stays so, and no member with a name of a secret keeps its value.
func FuzzRedactJSON(f *testing.F) {
	for _, s := range []string{`{"password":"S3CR3Tvalue"}`, `[{"a":{"token":["S3CR3Tvalue"]}}]`, `{"a":"{\"key\":\"S3CR3Tvalue\"}"}`, `"\u00`, `{"k\ud83d\ude00":1e5}`, `{"key":[[[`, `{"a":"https://x/?code=S3CR3Tvalue"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := redactJSON(nil, b, 0)
		if !json.Valid(b) {
			return
		}
		if !json.Valid(got) {
			t.Fatalf("%q becomes %q", b, got)
		}
		if again := redactJSON(nil, got, 0); !bytes.Equal(again, got) {
			t.Fatalf("%q becomes %q and then %q", b, got, again)
		}
		if utf8.Valid(b) { // planted behind and before anything
			for _, doc := range []string{`{"a":` + string(b) + `,"password":"` + planted + `"}`, `[{"api_key" :["` + planted + `",` + string(b) + `]},` + string(b) + `]`} {
				if got := redactJSON(nil, []byte(doc), 0); bytes.Contains(got, []byte(planted)) && !bytes.Contains(b, []byte(planted)) {
					t.Fatalf("%q becomes %q", doc, got)
				}
				cut := doc[:len(doc)*3/4]
				if got := redactJSON(nil, []byte(cut), 0); bytes.Contains(got, []byte(planted)) && !bytes.Contains(b, []byte(planted)) {
					t.Fatalf("%q becomes %q", cut, got)
				}
			}
		}
	})
}

// Whatever a body is and says that it is, showing it ends, and takes no more than it may.
func FuzzShowBody(f *testing.F) {
	f.Add([]byte("a=b&password=c"), "application/x-www-form-urlencoded", "")
	f.Add([]byte("--B\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nx\r\n--B--"), "multipart/form-data; boundary=B", "")
	f.Add([]byte("\x1f\x8b\x08"), "text/plain", "gzip")
	f.Add([]byte("<a><Password>x</Password>"), "text/xml", "identity")
	f.Fuzz(func(t *testing.T, b []byte, kind, coding string) {
		if len(b) > maxBodyKept {
			return
		}
		got := shown(string(b), "content-type", kind, "content-encoding", coding)
		if n := len(got.Text) + len(got.Binary); n > 16*maxInflated {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		if got.Text != "" && got.Binary != nil {
			t.Fatal("both text and none")
		}
		redactURLs(string(b))
	})
}

// What is not quite JSON, XML or a form has no secrets either.
func TestRedactOddBodies(t *testing.T) {
	const secret = "hunter2"
	for name, c := range map[string]struct{ kind, body, coding string }{
		"JSON in Latin-1":      {"application/json; charset=iso-8859-1", "{\"name\":\"J\xf6rg\",\"password\":\"hunter2\"}", ""},
		"JSON with a zero":     {"application/json", "{\"a\":\"\x00\",\"password\":\"hunter2\"}", ""},
		"JSON in UTF-16":       {"application/json", wide(`{"password":"hunter2"}`), ""},
		"text in UTF-16":       {"text/plain; charset=UTF-16LE", wide(`password={"password":"hunter2"}`), ""},
		"CDATA":                {"text/xml", "<a><password><![CDATA[hunter2]]></password></a>", ""},
		"CDATA that is cut":    {"text/xml", "<a><b/><password> <![CDATA[hunter2", ""},
		"elements":             {"text/xml", "<password><value>hunter2</value></password>", ""},
		"a line in a tag":      {"text/xml", "<password\n>hunter2</password>", ""},
		"attribute":            {"text/xml", `<login user="a>b" password="hunter2"/>`, ""},
		"attribute in quotes":  {"text/xml", `<login pwd = 'hunter2'></login>`, ""},
		"attribute, no quotes": {"text/html", `<p data-token=hunter2></p>`, ""},
		"attribute with space": {"text/xml", `<x c:secret="hunter2"></x>`, ""},
		"input":                {"text/html", `<input type=hidden name="csrf_token" value="hunter2"><p></p>`, ""},
		"input the other way":  {"text/html", `<input value="hunter2" name=csrf><p></p>`, ""},
		"setting":              {"text/xml", `<add key="ApiPassword" value="hunter2"/>`, ""},
		"part without CR":      {"multipart/form-data; boundary=B", "--B\nContent-Disposition: form-data; name=\"password\"\n\nhunter2\n--B--", ""},
		"part with a fold":     {"multipart/form-data; boundary=B", "--B\r\nContent-Disposition: form-data;\r\n name=\"password\"\r\n\r\nhunter2\r\n--B--", ""},
		"part without a head":  {"multipart/form-data; boundary=B", "--B\r\n{\"password\":\"hunter2\"}\r\n--B--", ""},
	} {
		got := shown(c.body, "Content-Type", c.kind)
		if all := got.Text + string(got.Binary); strings.Contains(strings.ReplaceAll(all, "\x00", ""), secret) || !got.Redacted {
			t.Errorf("%s: %q becomes %+v", name, c.body, got)
		}
	}
	for _, body := range []string{`<a href="x" class="b">c</a>`, "<ul><li key=\"12\">x</li></ul>", `<svg d="M0>1"/>`, `a < b = c`, "\xff\xd8\"a\": <x y=\x00>"} {
		if got := shown(body, "Content-Type", "text/html"); got.Text+string(got.Binary) != body {
			t.Errorf("%q becomes %+v", body, got)
		}
	}
	var zip bytes.Buffer
	for range 2 { // each on a line of its own
		w := gzip.NewWriter(&zip)
		plain := bytes.Clone(zip.Bytes())
		if len(plain) == 0 {
			plain = []byte(`{"password":"hunter2"}`)
		}
		zip.Reset()
		w.Write(plain)
		w.Close()
	}
	if got := shown(zip.String(), "Content-Encoding", "gzip", "Content-Encoding", "gzip"); got.Text != `{"password":"[redacted]"}` {
		t.Errorf("codings on two lines: %+v", got)
	}
}

// wide is s in UTF-16, the low bytes first.
func wide(s string) string {
	var b []byte
	for _, c := range []byte(s) {
		b = append(b, c, 0)
	}
	return string(b)
}
