package daemon

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

type testConfig struct {
	Relay   Strings       `toml:"relay"`
	Site    string        `toml:"site"`
	Drain   Duration      `toml:"drain_timeout"`
	Debug   bool          `toml:"debug"`
	Listen  testListen    `toml:"listen"`
	Service []testService `toml:"service"`
}

type testListen struct {
	HTTPS string `toml:"https"`
	Limit int    `toml:"limit"`
}

type testService struct {
	Name    string   `toml:"name"`
	Publish []string `toml:"publish"`
	Target  string   `toml:"target"`
}

func TestDecode(t *testing.T) {
	const text = `
relay = ["a:443", "b:443"]
site = "office"
drain_timeout = "1m30s"
listen = { https = ":443", limit = 7 }

[[service]]
name = "one"
publish = ["x", "y"]

[[service]]
name = "two"
`
	var c testConfig
	if err := Decode("f.toml", []byte(text), &c, nil); err != nil {
		t.Fatal(err)
	}
	want := testConfig{
		Relay: Strings{"a:443", "b:443"}, Site: "office", Drain: Duration(90 * time.Second),
		Listen:  testListen{":443", 7},
		Service: []testService{{Name: "one", Publish: []string{"x", "y"}}, {Name: "two"}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}

	// A list of one may be written without its brackets.
	c = testConfig{}
	if err := Decode("f.toml", []byte(`relay = "a:443"`), &c, nil); err != nil || !slices.Equal(c.Relay, []string{"a:443"}) {
		t.Errorf("relay = %q, %v", c.Relay, err)
	}
}

// Each bad file and every line that is printed for it.
func TestDecodeProblems(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"misspelt key", `stie = "office"`, `f.toml:1:1: unknown key "stie" (did you mean "site"?)`},
		{"wrong case", `Site = "office"`, `f.toml:1:1: unknown key "Site" (did you mean "site"?)`},
		{"nothing near", `colour = "red"`, `f.toml:1:1: unknown key "colour" (valid keys: relay, site, drain_timeout, debug, listen, service)`},
		{"all at once", "sit = \"a\"\n\n[listen]\nhttp = \":80\"\n\n[[service]]\nnmae = \"x\"\n  tagret = \"y\"\n", `
f.toml:1:1: unknown key "sit" (did you mean "site"?)
f.toml:4:1: unknown key "http" (did you mean "https"?)
f.toml:7:1: unknown key "nmae" (did you mean "name"?)
f.toml:8:3: unknown key "tagret" (did you mean "target"?)`},
		{"unknown table", "[lisen]\nhttps = \"x\"\nfoo = 1\n[listen]\nfoo = 1", `
f.toml:1:2: unknown key "lisen" (did you mean "listen"?)
f.toml:5:1: unknown key "foo" (valid keys: https, limit)`},
		{"inline table", `listen = { htps = ":443" }`, `f.toml:1:12: unknown key "htps" (did you mean "https"?)`},
		{"dotted key", `listen.htps = ":443"`, `f.toml:1:8: unknown key "htps" (did you mean "https"?)`},
		{"list of inline tables", `service = [{name = "a"}, {nam = "b"}]`, `f.toml:1:27: unknown key "nam" (did you mean "name"?)`},
		{"types", "relay = 7\nsite = 3\ndebug = \"yes\"\ndrain_timeout = 30\nlisten.limit = \"5\"\n[[service]]\npublish = \"x\"\n[[service]]\npublish = [\"x\", 1]\n", `
f.toml:1:9: relay must be a string or a list of strings, not an integer
f.toml:2:8: site must be a string, not an integer
f.toml:3:9: debug must be true or false, not a string
f.toml:4:17: drain_timeout must be a string, not an integer
f.toml:5:16: listen.limit must be an integer, not a string
f.toml:7:11: service[0].publish must be a list, not a string
f.toml:9:17: service[1].publish[1] must be a string, not an integer`},
		{"duration", `drain_timeout = "30 s"`, `f.toml:1:17: drain_timeout: "30 s" is not a duration, such as "30s" or "5m"`},
		{"negative duration", `drain_timeout = "-1s"`, `f.toml:1:17: drain_timeout: duration "-1s" is negative`},
		{"table for a list", "[service]\nname = \"x\"", `f.toml:1:2: "service" is written [[service]]`},
		{"list for a table", "[[listen]]\nhttps = \"x\"", `f.toml:1:3: "listen" is written [listen], once`},
		{"table for a value", "[site]\nname = \"x\"", `f.toml:1:2: "site" is a value, not a table: write site = ...`},
		{"key below a value", `site.name = "x"`, `f.toml:1:6: "site" is a value, not a table`},
		{"value for a table", `listen = ":443"`, `f.toml:1:10: listen must be a table, not a string`},
		{"syntax", "site = \"office\"\nrelay = [\"a\"", `f.toml:2:12: array is incomplete`},
		{"syntax and key", "stie = \"office\"\nrelay = \n", `
f.toml:1:1: unknown key "stie" (did you mean "site"?)
f.toml:2:9: unexpected character U+000A at start of value`},
		{"twice", "site = \"a\"\nsite = \"b\"\n", `f.toml:2:1: key site is already defined`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c testConfig
			err := Decode("f.toml", []byte(test.text), &c, nil)
			if got := fmt.Sprint(err); got != strings.TrimPrefix(test.want, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
			if ExitCode(err) != ExitUsage {
				t.Errorf("exit code %d", ExitCode(err))
			}
		})
	}
}

// A check made after decoding points at the value, and at its table when there is none. An unknown key does
// not prevent it, a wrong type does.
func TestCheck(t *testing.T) {
	const text = `site = "office"

[[service]]
nmae = "a"
publish = ["x",
  "y"]

[[service]]
target = "z"
`
	var c testConfig
	check := func(f *File) {
		if c.Site != "office" || !f.Has("site") || f.Has("relay") {
			t.Error("the values are not there")
		}
		f.Addf("service[1].name", "service without a name")
		f.Addf("service[0].publish[1]", "bad %q", "y")
		f.Addf("site", "no such site")
		f.Addf("listen.https", "missing")
	}
	want := `f.toml: missing
f.toml:1:8: no such site
f.toml:4:1: unknown key "nmae" (did you mean "name"?)
f.toml:6:3: bad "y"
f.toml:8:3: service without a name`
	if err := Decode("f.toml", []byte(text), &c, check); fmt.Sprint(err) != want {
		t.Errorf("got:\n%s\nwant:\n%s", err, want)
	}
	err := Decode("f.toml", []byte("site = 1"), &c, func(*File) { t.Error("a wrong type was checked") })
	if fmt.Sprint(err) != "f.toml:1:8: site must be a string, not an integer" {
		t.Error(err)
	}
}

func TestReadFile(t *testing.T) {
	var c testConfig
	err := ReadFile(t.TempDir()+"/none.toml", &c, nil)
	if ExitCode(err) != ExitUsage || !strings.Contains(err.Error(), "none.toml") {
		t.Errorf("missing file: %v", err)
	}
}

func TestEditDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"site", "site", 0}, {"stie", "site", 1}, {"sit", "site", 1}, {"sites", "site", 1}, {"nmae", "name", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(test.a, test.b); got != test.want {
			t.Errorf("%q to %q: %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

// Whatever the file holds, decoding ends with the value or with problems, and never panics.
func FuzzDecode(f *testing.F) {
	f.Add("site = \"office\"\n[[service]]\nname = \"a\"\npublish = [\"x\"]\n")
	f.Add("service = [{name = \"a\"}, {nam = \"b\"}]")
	f.Add("[listen]\nhttps.x = 1\n[[listen.limit]]")
	f.Add("[service.name]\n[[service]]\n[service.name]\n[[service.name]]")
	f.Fuzz(func(t *testing.T, text string) {
		var c testConfig
		err := Decode("f.toml", []byte(text), &c, nil)
		if err != nil && ExitCode(err) != ExitUsage {
			t.Fatal(err)
		}
	})
}

// Tables of any names, and those of an embedded struct.
func TestBoolOrStringAndPortRange(t *testing.T) {
	type config struct {
		Write BoolOrString `toml:"write"`
		Ports PortRange    `toml:"ports"`
	}
	for text, want := range map[string]config{
		``:                      {},
		`write = true`:          {Write: true},
		`write = false`:         {Write: false},
		`write = "new"`:         {Write: "new"},
		`ports = "40000-40999"`: {Ports: PortRange{40000, 40999}},
		`ports = "65535-65535"`: {Ports: PortRange{65535, 65535}},
		`ports = ""`:            {},
	} {
		var c config
		if err := Decode("f.toml", []byte(text), &c, nil); err != nil || c != want {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
	}
	for address, want := range map[string]bool{":40000": true, "192.0.2.1:40999": true, "[::1]:41000": false, ":39999": false, ":0": false, "40000": false, ":x": false} {
		if got := (PortRange{40000, 40999}).Has(address); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if (PortRange{}).Has(":0") {
		t.Error("no range has a port")
	}
	for text, want := range map[string]string{
		`write = 1`:         `f.toml:1:9: write must be true, false or a string, not an integer`,
		`write = ["new"]`:   `f.toml:1:1: write must be true, false or a string, not a list`,
		`ports = 40000`:     `f.toml:1:9: ports must be a string, not an integer`,
		`ports = "40000"`:   `f.toml:1:9: ports: "40000" is not a range of ports, such as "40000-40999"`,
		`ports = "0-1"`:     `f.toml:1:9: ports: "0-1" is not a range of ports, such as "40000-40999"`,
		`ports = "2-1"`:     `f.toml:1:9: ports: "2-1" is not a range of ports, such as "40000-40999"`,
		`ports = "1-65536"`: `f.toml:1:9: ports: "1-65536" is not a range of ports, such as "40000-40999"`,
	} {
		var c config
		if err := Decode("f.toml", []byte(text), &c, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestMaps(t *testing.T) {
	type embedded struct {
		Max   Size              `toml:"max"`
		Users map[string]string `toml:"users"`
	}
	type service struct {
		Name string `toml:"name"`
		embedded
	}
	type config struct {
		Service []service `toml:"service"`
	}
	var c config
	var f *File
	err := Decode("x.toml", []byte(`
[[service]]
name  = "a"
max   = "64KiB"
users = { alice = "1", "b.c" = "2" }
[[service]]
max = 1_000
[service.users]
carol = "3"
`), &c, func(file *File) { f = file })
	if err != nil {
		t.Fatal(err)
	}
	want := config{[]service{
		{"a", embedded{64 << 10, map[string]string{"alice": "1", "b.c": "2"}}},
		{"", embedded{1000, map[string]string{"carol": "3"}}},
	}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
	f.Addf("service[1].users.carol", "here")
	if err := f.Problems(); err == nil || err.Error() != "x.toml:9:9: here" {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"[[service]]\nusers = { alice = 1 }":   "x.toml:2:19: service[0].users.alice must be a string, not an integer",
		"[[service]]\nusers.alice.bob = \"1\"": "x.toml:2:13: \"service[0].users.alice\" is a value, not a table",
		"[[service]]\nmax = 1.5":               "x.toml:2:7: service[0].max must be a string, not a float",
		"[[service]]\nmax = \"-1\"":            "x.toml:2:7: service[0].max: \"-1\" is not a size, such as \"10MB\", \"64KiB\" or a number of bytes",
		"[[service]]\nmax = \"9999999999GiB\"": "x.toml:2:7: service[0].max: \"9999999999GiB\" is not a size, such as \"10MB\", \"64KiB\" or a number of bytes",
		"[[service]]\nmxa = 1":                 "x.toml:2:1: unknown key \"mxa\" (did you mean \"max\"?)",
	} {
		var c config
		if err := Decode("x.toml", []byte(text), &c, nil); err == nil || err.Error() != want {
			t.Errorf("%s:\n%v\nwant\n%s", text, err, want)
		}
	}
}
