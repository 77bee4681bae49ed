package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]Publish{
		"https://intranet.example.com":   {Scheme: "https", Host: "intranet.example.com", Path: "/"},
		"HTTPS://Intranet.Example.com/":  {Scheme: "https", Host: "intranet.example.com", Path: "/"},
		"http://a.example.com/app/v1/":   {Scheme: "http", Host: "a.example.com", Path: "/app/v1"},
		"wss://*.example.com":            {Scheme: "wss", Host: "*.example.com", Path: "/"},
		"ws://localhost/echo":            {Scheme: "ws", Host: "localhost", Path: "/echo"},
		"https://127.0.0.1":              {Scheme: "https", Host: "127.0.0.1", Path: "/"},
		"https://[::1]/x":                {Scheme: "https", Host: "::1", Path: "/x"},
		"tcp://:15432":                   {Scheme: "tcp", Port: 15432},
		"tcp://:0":                       {Scheme: "tcp"},
		"tcp://127.0.0.1:15432/":         {Scheme: "tcp", Host: "127.0.0.1", Port: 15432},
		"tcp://[::1]:22":                 {Scheme: "tcp", Host: "::1", Port: 22},
		"tcp://relay.example.com:000022": {},
		"udp://:5514":                    {Scheme: "udp", Port: 5514},
		"UDP://[::1]:53":                 {Scheme: "udp", Host: "::1", Port: 53},
		"TLS://Mail.example.com/":        {Scheme: "tls", Host: "mail.example.com"},
		"tls://*.example.com":            {Scheme: "tls", Host: "*.example.com"},
		"RTSP://Cams.example.com/gate/":  {Scheme: "rtsp", Host: "cams.example.com", Path: "/gate"},
		"rtsps://*.example.com":          {Scheme: "rtsps", Host: "*.example.com", Path: "/"},
		"TFTP:///boot/":                  {Scheme: "tftp", Path: "/boot"},
		"tftp:///Boot/x86":               {Scheme: "tftp", Path: "/Boot/x86"},
		"tftp:///":                       {Scheme: "tftp", Path: "/"},
		"tftp://":                        {Scheme: "tftp", Path: "/"},
	} {
		got, err := ParsePublish(in)
		if want.IsZero() {
			if err == nil {
				t.Errorf("ParsePublish(%q) = %+v, want an error", in, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("ParsePublish(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
}

// What a person can get wrong in a URL, and the sentence that person reads.
func TestURLErrors(t *testing.T) {
	publish := func(s string) error { _, err := ParsePublish(s); return err }
	target := func(s string) error { _, err := ParseTarget(s); return err }
	pattern := func(s string) error { _, err := ParsePattern(s); return err }
	snapshot := func(s string) error { _, err := ParseSnapshot(s); return err }
	for _, tt := range []struct {
		parse    func(string) error
		in, want string
	}{
		{publish, "rtsp://cams.example.com:554/gate", `publish "rtsp://cams.example.com:554/gate": leave the port out`},
		{publish, "rtsps://a:secret@cams.example.com/gate", `publish "rtsps://…@cams.example.com/gate": has a user or password, which is not supported by this version`},
		{publish, "rtsp://cams.example.com/gate?a=b", "has a query"},
		{publish, "rtsp://cams.example.com?a=b", "has a query"},
		{publish, "rtsp://cams.example.com/gate#a", "has a query"},
		{publish, "udp://", `publish "udp://": no port: want udp://:15432`},
		{publish, "udp://:53/x", "udp has no path"},
		{publish, "tftp://boot/", "want the path after three slashes, tftp:///boot"},
		{publish, "tftp://:69/", "want the path after three slashes"},
		{publish, "tftp:///boot//x", "segment"},
		{publish, "tftp:///../boot", "segment"},
		{publish, "tftp:///boot/*", "not supported in a path prefix, which has everything below in it"},
		{publish, `tftp:///boot\\x`, "not supported in a path prefix"},
		{publish, "ftp:///boot/", "ftp is not supported by this version"},
		{publish, "tls://:993", "leave the port out"},
		{publish, "tls://mail.example.com:993", "leave the port out"},
		{publish, "tls://mail.example.com/inbox", "tls has no path"},
		{publish, "tls://192.0.2.1", "want a host name"},
		{publish, "tls://[::1]", "want a host name"},
		{publish, "tls://", "no host"},
		{publish, "tls://*.192.0.2.1", "a wildcard needs a name"},
		{publish, "file:///srv", "file is not supported by this version"},
		{publish, "", "is empty"},
		{publish, "app.example.com", "want scheme://host/path"},
		{publish, "https://", "no host"},
		{publish, "https://app.example.com:8443", "leave the port out"},
		{publish, "https://app..example.com", "is not a host name"},
		{publish, "https://a.*.example.com", "is not a host name"},
		{publish, "https://bücher.example.com", "xn--"},
		{publish, "https://app.example.com/a?b", "has a query"},
		{publish, "https://app.example.com/a//b", "segment"},
		{publish, "https://app.example.com/../b", "segment"},
		{publish, "https://app.example.com/%2e", "not supported in a path prefix"},
		{publish, "https://app.example.com/a;v=1", "not supported in a path prefix"},
		{publish, "https://app.example.com/api/*", "not supported in a path prefix, which has everything below in it"},
		{publish, "https://app.example.com /", "contains a space"},
		{publish, "https://*.127.0.0.1", "a wildcard needs a name"},
		{publish, "https://::1/", "needs brackets"},
		{publish, "https://[::1/", "missing ']'"},
		{publish, "https://[fe80::1%25eth0]/", "is not an IPv6 address"},
		{publish, "tcp://", "no port"},
		{publish, "tcp://:99999", `port "99999": want 0 to 65535`},
		{publish, "tcp://:1-2", `port "1-2"`},
		{publish, "tcp://:22/x", "tcp has no path"},
		{publish, "tcp://*.example.com:22", "no wildcard here"},
		{publish, "https://" + strings.Repeat("a", 600), "bytes, more than 512"},
		{target, "rtsp://viewer:secret@", `target "rtsp://…@": no host`},
		{target, "rtsp://viewer:secret@10.0.0.20:x/h264", `target "rtsp://…@10.0.0.20:x/h264": port "x"`},
		{target, "rtsp://viewer:secret@10.0.0.20:0", "port 0"},
		{target, "rtsp://viewer:sec%2gret@10.0.0.20", "has a '%' that is no escape"},
		{target, "rtsp://viewer:sec%0aret@10.0.0.20", "has a control character"},
		{target, "rtsp://:secret@10.0.0.20", "the user's name is empty"},
		{target, "rtsp://a%3ab:secret@10.0.0.20", "the user's name is empty or has a colon"},
		{target, "rtsp://viewer:secret/5@10.0.0.20/h264", `target "rtsp://…@10.0.0.20/h264": has an '@' behind the host: in a password`},
		{target, "rtsp://viewer:5/secret@10.0.0.20/h264", "has an '@' behind the host"},
		{target, "rtsp://viewer:5?secret@10.0.0.20/h264", "has an '@' behind the host"},
		{target, "rtsp://viewer:secret@10.0.0.20/a@b", "has an '@' behind the host"},
		{target, "rtsp:/viewer:secret@10.0.0.20/h264", `target "…@10.0.0.20/h264": want scheme://host/path`},
		{target, "rtsp://10.0.0.20:x/?user=a&password=secret", `target "rtsp://10.0.0.20:x/?user=a&password=…": port "x"`},
		{target, "rtsp://viewer:" + strings.Repeat("secret", 30) + "@10.0.0.20:x/h264", `target "rtsp://…@10.0.0.20:x/h264": port "x"`},
		{target, "rtsp://10.0.0.20/h264#a", "has a query or a fragment"},
		{target, "https://10.0.0.20?a", "has a query"},
		{target, "udp://10.0.0.6", "no port: want udp://host:port"},
		{target, "udp://10.0.0.6:514/x", "udp has no path"},
		{target, "http://u:p@10.0.0.6/", `target "http://…@10.0.0.6/": has a user or password`},
		{target, "tcp://10.0.0.5", "no port: want tcp://host:port"},
		{target, "tcp://:22", "no host"},
		{target, "http://10.0.0.5:0", "port 0"},
		{target, "http://10.0.0.5/a/%2e%2e/b", "\"..\" segment"},
		{target, "http://10.0.0.5/a%2Fb", "a slash or backslash in one"},
		{target, "http://10.0.0.5/a//b", "segment"},
		{target, "http://10.0.0.5/100%", "has a '%' that is no escape"},
		{target, "http://10.0.0.5/base?a", "has a query"},
		{target, "h2c://10.0.0.5/base", "leave the path out"},
		{target, "h2://10.0.0.5/base", "leave the path out"},
		{target, "tftp://", "no host"},
		{target, "tftp://10.0.0.7:0/", "port 0"},
		{target, "tftp://10.0.0.7/a%20b", "names of TFTP have no escapes"},
		{target, "tftp://10.0.0.7///a", "segment"},
		{target, "tftp://10.0.0.7/a/../b", "segment"},
		{target, "file://srv/www", "after three slashes: file:///path"},
		{target, "unix://", "no path: want unix:///path"},
		{target, "file:///a\nb", "control character"},
		{target, "rest://", "want rest://site"},
		{target, "rest://other", "want rest://site"},
		{target, "rest://site:80", "want rest://site"},
		{target, "rest://site/api", "want rest://site"},
		{target, "listen://program", "listen is not supported"},
		{snapshot, "rtsp://viewer:secret@10.0.0.20/", `snapshot "rtsp://…@10.0.0.20/": want http:// or https://`},
		{snapshot, "http://viewer:secret@10.0.0.20:x/a.jpg", `snapshot "http://…@10.0.0.20:x/a.jpg": port "x"`},
		{snapshot, "http://viewer:5/secret@10.0.0.20:x/a.jpg", "has an '@' behind the host"},
		{snapshot, "10.0.0.20/snap.jpg", "want scheme://host/path"},
		{snapshot, "http://", "no host"},
		{snapshot, "http://cam.lan/a#b", "has a query or a fragment"},
		{pattern, "tftp://boot/*", "want the path after three slashes"},
		{pattern, "tftp:///*/x", "not supported in a path prefix"},
		{pattern, "udp://", "no port: want udp://:15432, udp://:15000-15999 or udp://:*"},
		{pattern, "tls://mail.example.com/*", "tls has no path"},
		{pattern, "tls://:443", "leave the port out"},
		{pattern, "tcp://:20-10", "low end is above the high end"},
		{pattern, "tcp://:-10", "want low-high"},
		{pattern, "tcp://", "no port"},
		{pattern, "https://a.example.com/*/b", "not supported in a path prefix"},
	} {
		if err := tt.parse(tt.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q in it", tt.in, err, tt.want)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password: %v", tt.in, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]Target{
		"http://127.0.0.1:8080":           {Scheme: "http", Host: "127.0.0.1", Port: 8080},
		"http://Intranet/":                {Scheme: "http", Host: "intranet", Port: 80},
		"http://web/images/%20/":          {Scheme: "http", Host: "web", Port: 80, Path: "/images/%20"},
		"https://web:8443/boot":           {Scheme: "https", Host: "web", Port: 8443, Path: "/boot"},
		"TFTP://10.0.0.7/":                {Scheme: "tftp", Host: "10.0.0.7", Port: 69},
		"tftp://[fd00::5]:1069/boot/x86/": {Scheme: "tftp", Host: "fd00::5", Port: 1069, Path: "/boot/x86"},
		"tftp://store//srv/tftp":          {Scheme: "tftp", Host: "store", Port: 69, Path: "//srv/tftp"},
		"https://intranet":                {Scheme: "https", Host: "intranet", Port: 443},
		"ws://127.0.0.1:9000":             {Scheme: "http", Host: "127.0.0.1", Port: 9000},
		"wss://a.lan":                     {Scheme: "https", Host: "a.lan", Port: 443},
		"h2c://10.0.0.8:50051":            {Scheme: "h2c", Host: "10.0.0.8", Port: 50051},
		"h2c://grpc.lan":                  {Scheme: "h2c", Host: "grpc.lan", Port: 80},
		"h2://grpc.lan/":                  {Scheme: "h2", Host: "grpc.lan", Port: 443},
		"tcp://[fd00::5]:5432":            {Scheme: "tcp", Host: "fd00::5", Port: 5432},
		"udp://10.0.0.6:514":              {Scheme: "udp", Host: "10.0.0.6", Port: 514},
		"unix:///run/app.sock":            {Scheme: "unix", Path: "/run/app.sock"},
		"file:///srv/www":                 {Scheme: "file", Path: "/srv/www"},
		"file:///srv/Über uns?#":          {Scheme: "file", Path: "/srv/Über uns?#"},
		"file:///C:/srv":                  {Scheme: "file", Path: "C:/srv"},
		"rest://site":                     {Scheme: "rest", Host: "site"},
		"REST://Site/":                    {Scheme: "rest", Host: "site"},
		"RTSP://Cam.lan":                  {Scheme: "rtsp", Host: "cam.lan", Port: 554},
		"rtsps://cam.lan/":                {Scheme: "rtsps", Host: "cam.lan", Port: 322, Path: "/"},
		"rtsp://[fd00::5]?a=b":            {Scheme: "rtsp", Host: "fd00::5", Port: 554, Query: "a=b"},
		"rtsp://admin@cam.lan/1":          {Scheme: "rtsp", Host: "cam.lan", Port: 554, Path: "/1", User: "admin"},
		"rtsp://10.0.0.20/Streaming/Channels/101/?transport=tcp": {
			Scheme: "rtsp", Host: "10.0.0.20", Port: 554, Path: "/Streaming/Channels/101/", Query: "transport=tcp",
		},
		"rtsp://v%69ewer:s:e%2Fc@r%C3%A9t%25@10.0.0.20:8554/cam/realmonitor?channel=1&subtype=0": {
			Scheme: "rtsp", Host: "10.0.0.20", Port: 8554, Path: "/cam/realmonitor", Query: "channel=1&subtype=0",
			User: "viewer", Password: "s:e/c@rét%",
		},
	} {
		got, err := ParseTarget(in)
		if err != nil || !same(got, want) {
			t.Errorf("ParseTarget(%q) = %#v, %v, want %#v", in, got, err, want)
		}
	}
}

// same compares targets as ==, which %+v would not show: it hides what is secret.
func same(a, b Target) bool { return a == b }

func TestParseSnapshot(t *testing.T) {
	for in, want := range map[string]Target{
		"http://cam.lan/snap.jpg?channel=1": {Scheme: "http", Host: "cam.lan", Port: 80, Path: "/snap.jpg", Query: "channel=1"},
		"HTTPS://a:b%40c@[fd00::5]":         {Scheme: "https", Host: "fd00::5", Port: 443, User: "a", Password: "b@c"},
		"http://cam.lan:8080/":              {Scheme: "http", Host: "cam.lan", Port: 8080, Path: "/"},
	} {
		got, err := ParseSnapshot(in)
		if err != nil || !same(got, want) {
			t.Errorf("ParseSnapshot(%q) = %#v, %v, want %#v", in, got, err, want)
		}
		if text := got.String(); strings.Contains(text, "b@c") || got.User == "" && text != want.Scheme+"://"+want.Host+":"+strconv.Itoa(int(want.Port))+strings.TrimPrefix(in[len("http://cam.lan"):], ":8080") {
			t.Errorf("%s is shown as %s", in, text)
		}
	}
}

// What is secret in a target is shown nowhere.
func TestTargetSecrets(t *testing.T) {
	for in, want := range map[string]string{
		"rtsp://viewer:hunter2@10.0.0.20/h264":                            "rtsp://…@10.0.0.20:554/h264",
		"rtsps://viewer@cam.lan/h264?channel=1":                           "rtsps://…@cam.lan:322/h264?channel=1",
		"rtsp://viewer:@cam.lan":                                          "rtsp://…@cam.lan:554",
		"rtsp://cam.lan/user=admin_password=hunter2_channel=1.sdp?real":   "rtsp://cam.lan:554/user=admin_password=…",
		"rtsp://cam.lan/live?usr=a&PWD=hunter2&ch=1":                      "rtsp://cam.lan:554/live?usr=a&PWD=…",
		"rtsp://cam.lan/live?passwd=hunter2":                              "rtsp://cam.lan:554/live?passwd=…",
		"rtsp://viewer:hunter2@cam.lan/passage/1?token=hunter2&channel=1": "rtsp://…@cam.lan:554/passage/1?token=…",
	} {
		p, err := ParseTarget(in)
		if err != nil || p.String() != want || !p.HasSecret() {
			t.Errorf("%s is shown as %s, %v", in, p, err)
		}
		text, _ := p.MarshalText()
		service := Service{Name: "gate", Target: p}
		for _, shown := range []string{string(text), fmt.Sprintf("%v %+v %s %q", p, p, p, p), fmt.Sprintf("%v %+v", service, service)} {
			if strings.Contains(shown, "hunter2") || strings.Contains(shown, "viewer") {
				t.Errorf("%s is shown as %s", in, shown)
			}
		}
	}
	for _, in := range []string{"rtsp://cam.lan/passage?channel=1", "http://cam.lan", "file:///srv/password=x", "rtsp://cam.lan/live?user=admin&password=&channel=1"} {
		if p, err := ParseTarget(in); err != nil || in != "rtsp://cam.lan/live?user=admin&password=&channel=1" && p.HasSecret() {
			t.Errorf("%s has a secret: %v", in, err)
		}
	}
}

func TestServiceValidate(t *testing.T) {
	for _, tt := range []struct{ name, publish, target, want string }{
		{"web", "https://a.example.com", "http://127.0.0.1:80", ""},
		{"web", "wss://a.example.com", "unix:///run/s", ""},
		{"files", "https://a.example.com", "file:///srv", ""},
		{"rpc", "https://a.example.com", "h2c://10.0.0.5:50051", ""},
		{"rpc", "tcp://:15432", "h2c://10.0.0.5:50051", `service "rpc": a tcp:// publish needs`},
		{"db", "tcp://:15432", "tcp://10.0.0.5:5432", ""},
		{"ssh", "", "tcp://10.0.0.9:22", ""},
		{"db", "tcp://:15432", "https://10.0.0.5", `service "db": a tcp:// publish needs`},
		{"web", "https://a.example.com", "tcp://10.0.0.5:80", `service "web": an https:// publish needs`},
		{"web", "https://a.example.com", "", `service "web": no target`},
		{"log", "udp://:5514", "udp://10.0.0.6:514", ""},
		{"log", "udp://:5514", "tcp://10.0.0.6:514", `service "log": a udp:// publish needs a udp:// target`},
		{"mail", "tls://mail.example.com", "tcp://10.0.0.7:993", ""},
		{"web", "tls://a.example.com", "http://10.0.0.5", ""},
		{"files", "tls://a.example.com", "file:///srv", ""},
		{"mail", "tls://mail.example.com", "udp://10.0.0.7:993", `service "mail": a tls:// publish carries no datagrams`},
		{"log", "tcp://:5514", "udp://10.0.0.6:514", `service "log": a tcp:// publish needs`},
		{"log", "https://a.example.com", "udp://10.0.0.6:514", `not udp://`},
		{"gate", "rtsp://cams.example.com/gate", "rtsp://a:b@10.0.0.20/h264", ""},
		{"gate", "rtsps://cams.example.com/gate", "rtsps://10.0.0.20/h264", ""},
		{"gate", "", "rtsp://10.0.0.20/h264", ""},
		{"gate", "rtsp://cams.example.com/gate", "tcp://10.0.0.20:554", `service "gate": an rtsp:// publish needs an rtsp:// or rtsps:// target, not tcp://`},
		{"gate", "https://cams.example.com/gate", "rtsp://10.0.0.20/h264", `service "gate": an rtsp:// target needs an rtsp:// or rtsps:// publish`},
		{"gate", "tcp://:8554", "rtsp://10.0.0.20/h264", `service "gate": a tcp:// publish needs`},
		{"gate", "udp://:8554", "rtsp://10.0.0.20/h264", `service "gate": a udp:// publish needs`},
		{"gate", "tls://cams.example.com", "rtsps://10.0.0.20/h264", `service "gate": a tls:// publish is passed through`},
		{"log", "", "udp://10.0.0.6:514", ""},
		{"boot", "tftp:///boot/", "file:///srv/tftp", ""},
		{"boot", "tftp:///", "tftp://10.0.0.7/boot", ""},
		{"boot", "tftp:///boot", "http://10.0.0.8/images/", ""},
		{"boot", "tftp:///boot", "https://10.0.0.8", ""},
		{"boot", "tftp:///boot", "tcp://10.0.0.8:69", `service "boot": a tftp:// publish needs a file://, tftp://, http:// or https:// target, not tcp://`},
		{"boot", "tftp:///boot", "udp://10.0.0.8:69", "not udp://"},
		{"boot", "tftp:///boot", "h2c://10.0.0.8", "not h2c://"},
		{"boot", "tftp:///boot", "rtsp://10.0.0.8", "not rtsp://"},
		{"boot", "tftp:///boot", "unix:///run/s", "not unix://"},
		{"boot", "udp://:69", "tftp://10.0.0.7", `service "boot": a tftp:// target needs a tftp:// publish`},
		{"boot", "https://a.example.com", "tftp://10.0.0.7", "needs a tftp:// publish"},
		{"boot", "tls://a.example.com", "tftp://10.0.0.7", "needs a tftp:// publish"},
		{"boot", "", "tftp://10.0.0.7", "needs a tftp:// publish"},
		{"web", "https://a.example.com", "http://10.0.0.5/base", `service "web": target "http://10.0.0.5:80/base": leave the path out: the visitor's path reaches the target as it is`},
		{"web", "", "https://10.0.0.5/base", "leave the path out"},
		{"web", "wss://a.example.com", "ws://10.0.0.5/base", "leave the path out"},
		{"diag", "", "rest://site", ""},
		{"diag", "https://diag.example.com", "rest://site", `service "diag": a rest:// target is for operators: leave publish out, or demand users or client_ca of visitors`},
		{"diag", "tls://diag.example.com", "rest://site", ""},
		{"diag", "http://diag.example.com", "rest://site", "published by https:// or tls://, not http://"},
		{"diag", "tcp://:15432", "rest://site", "published by https:// or tls://, not tcp://"},
		{"diag", "tftp:///boot", "rest://site", "not rest://"},
		{"diag", "rtsp://cams.example.com", "rest://site", "not rtsp://"},
		{"", "", "tcp://a:1", "name is empty"},
		{"a b", "", "tcp://a:1", "want letters, digits"},
		{strings.Repeat("a", 65), "", "tcp://a:1", "more than 64"},
	} {
		s := Service{Name: tt.name}
		if err := s.Publish.UnmarshalText([]byte(tt.publish)); err != nil {
			t.Fatal(err)
		}
		if err := s.Target.UnmarshalText([]byte(tt.target)); err != nil {
			t.Fatal(err)
		}
		err := s.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %v, want %q", tt, err, tt.want)
		}
	}
	s := Service{Name: "web", Target: Target{Scheme: "tcp", Host: "a", Port: 1}, Camera: &Camera{UDP: true}}
	if err := s.Validate(); err == nil || err.Error() != `service "web": fan_out, udp and roaming are for rtsp:// and rtsps:// targets, not tcp://` {
		t.Error(err)
	}
	s.Target.Scheme = "rtsp"
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestPatternAllows(t *testing.T) {
	for _, tt := range []struct {
		pattern, publish string
		want             bool
	}{
		{"https://*.example.com", "https://a.example.com", true},
		{"https://*.example.com", "wss://a.example.com/any/path", true},
		{"https://*.example.com", "https://*.example.com", true},
		{"https://*.example.com", "https://a.b.example.com", false},
		{"https://*.example.com", "https://example.com", false},
		{"https://*.example.com", "https://badexample.com", false},
		{"https://*.example.com", "http://a.example.com", false},
		{"https://a.example.com", "https://*.example.com", false},
		{"https://a.example.com/app", "https://a.example.com/app", true},
		{"https://a.example.com/app/*", "https://a.example.com/app/v1", true},
		{"https://a.example.com/app", "https://a.example.com/apple", false},
		{"https://a.example.com/app", "https://a.example.com", false},
		{"http://a.example.com", "ws://a.example.com", true},
		{"tcp://:15000-15999", "tcp://:15000", true},
		{"tcp://:15000-15999", "tcp://127.0.0.1:15999", true},
		{"tcp://:15000-15999", "tcp://:16000", false},
		{"tcp://:15000-15999", "tcp://:0", false},
		{"tcp://:*", "tcp://:0", true},
		{"tcp://127.0.0.1:22", "tcp://127.0.0.1:22", true},
		{"tcp://127.0.0.1:22", "tcp://:22", false},
		{"tcp://:22", "https://a.example.com", false},
		{"tls://*.example.com", "tls://mail.example.com", true},
		{"tls://*.example.com", "tls://*.example.com", true},
		{"tls://*.example.com", "tls://a.b.example.com", false},
		{"tls://*.example.com", "https://a.example.com", false},
		{"https://*.example.com", "tls://a.example.com", false},
		{"tcp://:*", "tls://a.example.com", false},
		{"udp://:5000-5999", "udp://:5514", true},
		{"udp://:5000-5999", "tcp://:5514", false},
		{"tcp://:*", "udp://:5514", false},
		{"udp://:*", "udp://127.0.0.1:0", true},
		{"rtsp://cams.example.com/*", "rtsp://cams.example.com/gate", true},
		{"rtsp://cams.example.com/*", "rtsps://cams.example.com/gate", true},
		{"rtsps://*.example.com", "rtsps://cams.example.com", true},
		{"rtsps://*.example.com", "rtsp://cams.example.com", false},
		{"https://*.example.com", "rtsps://cams.example.com", false},
		{"rtsp://*.example.com", "https://cams.example.com", false},
		{"tftp:///boot/*", "tftp:///boot", true},
		{"tftp:///boot/*", "tftp:///boot/x86", true},
		{"tftp:///boot", "tftp:///boot/x86", true},
		{"tftp:///boot/*", "tftp:///bootx", false},
		{"tftp:///boot/*", "tftp:///Boot", false},
		{"tftp:///boot/*", "tftp:///", false},
		{"tftp:///*", "tftp:///", true},
		{"tftp:///", "tftp:///boot", true},
		{"tftp:///", "https://a.example.com/boot", false},
		{"udp://:*", "tftp:///boot", false},
		{"https://*.example.com", "tftp:///boot", false},
	} {
		pattern, err := ParsePattern(tt.pattern)
		if err != nil {
			t.Fatal(err)
		}
		publish, err := ParsePublish(tt.publish)
		if err != nil {
			t.Fatal(err)
		}
		if got := pattern.Allows(publish); got != tt.want {
			t.Errorf("%s allows %s = %v, want %v", tt.pattern, tt.publish, got, tt.want)
		}
	}
	if (Pattern{}).Allows(Publish{}) {
		t.Error("the zero pattern allows the zero publish")
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, host string
		want          bool
	}{
		{"*.example.com", "a.example.com", true},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "a.b.example.com", false},
		{"*.example.com", "example.com", false},
		{"a.example.com", "a.example.com", true},
		{"*", "a", false},
	} {
		if got := MatchHost(tt.pattern, tt.host); got != tt.want {
			t.Errorf("MatchHost(%q, %q) = %v", tt.pattern, tt.host, got)
		}
	}
	if !MatchPath("/", "*") || !MatchPath("/a", "/a/b") || MatchPath("/a", "/ab") || MatchPath("/a", "/") {
		t.Error("MatchPath does not keep to segments")
	}
}

const testKey = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func testHello() Hello {
	return Hello{
		Version: WireVersion, Site: "office", Key: testKey, Signature: make([]byte, 64),
		Session: strings.Repeat("ab", 16), Resume: strings.Repeat("cd", 32), Software: "culvert 1.0",
		Role: RoleBulk, Links: 3, Choice: "wss: the default", Machine: strings.Repeat("01", 16), Process: strings.Repeat("23", 16),
	}
}

func TestHello(t *testing.T) {
	h := testHello()
	got, err := DecodeHello(Encode(h))
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		spoil func(*Hello)
		code  RefusalCode
	}{
		"newer version": {func(h *Hello) { h.Version++; h.Key = "later" }, RefuseVersion},
		"older version": {func(h *Hello) { h.Version = 0 }, RefuseVersion},
		"site":          {func(h *Hello) { h.Site = "../etc" }, RefuseMalformed},
		"key":           {func(h *Hello) { h.Key = testKey[:20] }, RefuseMalformed},
		"loose key":     {func(h *Hello) { h.Key = testKey[:len(testKey)-1] + "B" }, RefuseMalformed},
		"signature":     {func(h *Hello) { h.Signature = h.Signature[1:] }, RefuseMalformed},
		"session":       {func(h *Hello) { h.Session = "zz" }, RefuseMalformed},
		"resume":        {func(h *Hello) { h.Resume = "" }, RefuseMalformed},
		"software":      {func(h *Hello) { h.Software = "a\nb" }, RefuseMalformed},
		"role":          {func(h *Hello) { h.Role = "none" }, RefuseMalformed},
		"no links":      {func(h *Hello) { h.Links = -1 }, RefuseMalformed},
		"choice":        {func(h *Hello) { h.Choice = "a\nb" }, RefuseMalformed},
		"long choice":   {func(h *Hello) { h.Choice = strings.Repeat("a", MaxChoice+1) }, RefuseMalformed},
		"machine":       {func(h *Hello) { h.Machine = "ab" }, RefuseMalformed},
		"process":       {func(h *Hello) { h.Process = strings.Repeat("x", 32) }, RefuseMalformed},
	} {
		h := testHello()
		tt.spoil(&h)
		_, err := DecodeHello(Encode(h))
		var r *Refusal
		if !errors.As(err, &r) || r.Code != tt.code {
			t.Errorf("%s: %v, want a refusal with code %s", name, err, tt.code)
		}
	}
	for _, b := range [][]byte{nil, []byte("{"), []byte("[]"), bytes.Repeat([]byte(" "), MaxMessage+1)} {
		if _, err := DecodeHello(b); err == nil {
			t.Errorf("DecodeHello(%.10q) accepted", b)
		}
	}
}

func TestWelcome(t *testing.T) {
	w := Welcome{Session: strings.Repeat("ab", 16), Resume: strings.Repeat("cd", 32), Resumed: true, Active: true}
	if got, err := DecodeWelcome(Encode(w)); err != nil || got != w {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	// A refusal comes out fit for a log, whatever the relay wrote.
	got, err := DecodeWelcome([]byte(`{"session":"x","error":{"code":"busy","message":"a\nb` + strings.Repeat("c", 1000) + `","retry":true}}`))
	if err != nil || got.Session != "" || got.Error.Code != RefuseBusy || !got.Error.Retry ||
		!strings.HasPrefix(got.Error.Message, "a?b") || len(got.Error.Message) > 300 {
		t.Fatalf("refusal: %+v, %v", got.Error, err)
	}
	if _, err := DecodeWelcome([]byte("{}")); err == nil {
		t.Error("an empty welcome is accepted")
	}
}

func TestJoinMessages(t *testing.T) {
	q := JoinRequest{Version: WireVersion, Secret: make([]byte, 32), Key: testKey}
	if got, err := DecodeJoinRequest(Encode(q)); err != nil || !reflect.DeepEqual(got, q) {
		t.Fatalf("request: %+v, %v", got, err)
	}
	q.Secret = nil
	if _, err := DecodeJoinRequest(Encode(q)); err == nil {
		t.Error("a request without secret is accepted")
	}
	r := JoinResponse{Site: "office", Publish: []string{"https://*.example.com"}}
	if got, err := DecodeJoinResponse(Encode(r)); err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("response: %+v, %v", got, err)
	}
	// A site may publish many things.
	r.Publish = slices.Repeat([]string{"https://app.example.com/some/path"}, 2000)
	if got, err := DecodeJoinResponse(Encode(r)); err != nil || len(got.Publish) != 2000 {
		t.Errorf("2000 patterns: %v", err)
	}
	r.Site = ""
	if _, err := DecodeJoinResponse(Encode(r)); err == nil {
		t.Error("a response without site is accepted")
	}
}

func TestAnnounce(t *testing.T) {
	list := []Announcement{{Name: "web", Publish: "https://a.example.com", TargetScheme: "http"}, {Name: "ssh", TargetScheme: "tcp"},
		{Name: "gate", Publish: "rtsp://a.example.com/gate", TargetScheme: "rtsp", Camera: &Camera{FanOut: true, UDP: true, Roaming: true}},
		{Name: "yard", Publish: "rtsps://a.example.com/yard", TargetScheme: "rtsps", Camera: &Camera{}},
		{Name: "boot", Publish: "tftp:///boot", TargetScheme: "file", Files: &Files{Write: WriteNew, MaxSize: 1 << 30, Cache: true}},
		{Name: "logs", Publish: "tftp:///logs", TargetScheme: "tftp", Files: &Files{}}}
	if got, err := DecodeAnnounce(Encode(list)); err != nil || !reflect.DeepEqual(got, list) {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	list[1].Name = "web"
	if _, err := DecodeAnnounce(Encode(list)); err == nil || !strings.Contains(err.Error(), `service "web" comes twice`) {
		t.Errorf("duplicate: %v", err)
	}
	// What a relay does not know of a camera it cannot do.
	for _, text := range []string{`{"fanout":true}`, `{"udp":1}`, `[]`, `{"udp":true,"multicast":true}`} {
		if _, err := DecodeAnnounce([]byte(`[{"name":"a","camera":` + text + `}]`)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	for _, text := range []string{`{"writes":"new"}`, `{"write":true}`, `{"cache":1}`, `[]`, `{"max_size":1,"ignore_case":true}`} {
		if _, err := DecodeAnnounce([]byte(`[{"name":"a","files":` + text + `}]`)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	many, _ := json.Marshal(make([]Announcement, MaxServices+1))
	if _, err := DecodeAnnounce(many); err == nil {
		t.Error("too many services are accepted")
	}
	reply := []AnnounceReply{{Name: "web", Addresses: []string{"https://a.example.com"}}, {Name: "ssh", Error: "no"}}
	if got, err := DecodeAnnounceReply(Encode(reply)); err != nil || !reflect.DeepEqual(got, reply) {
		t.Fatalf("reply: %+v, %v", got, err)
	}
}

// The golden vectors that docs/protocol.md shows.
func TestHeaderGolden(t *testing.T) {
	for want, h := range map[string]Header{
		"\x01\x01\x03web\x05https\x0da.example.com\x04\xc0\x00\x02\x01\x1f\x90": {
			Kind: KindConnect, Service: "web", Scheme: "https", Host: "a.example.com", Visitor: netip.MustParseAddrPort("192.0.2.1:8080"),
		},
		"\x01\x02\x00\x00\x00\x00":                {Kind: KindAnnounce},
		"\x01\x03\x07standby\x00\x00\x00":         {Kind: KindNotice, Service: NoticeStandby},
		"\x01\x03\x06choice\x00\x09wss alone\x00": {Kind: KindNotice, Service: NoticeChoice, Host: "wss alone"},
		"\x01\x06\x04boot\x04tftp\x00\x04\xc0\x00\x02\x01\x1f\x90": {
			Kind: KindFile, Service: "boot", Scheme: "tftp", Visitor: netip.MustParseAddrPort("192.0.2.1:8080"),
		},
		"\x01\x07\x05.ping\x07operate\x05alice\x04\xc0\x00\x02\x01\x1f\x90": {
			Kind: KindOperate, Service: ".ping", Scheme: "operate", Host: "alice", Visitor: netip.MustParseAddrPort("192.0.2.1:8080"),
		},
		"\x01\x04\x06syslog\x03udp\x00\x04\xc0\x00\x02\x01\x1f\x90": {
			Kind: KindFlow, Service: "syslog", Scheme: "udp", Visitor: netip.MustParseAddrPort("192.0.2.1:8080"),
		},
	} {
		b, err := h.Append(nil)
		if err != nil || string(b) != want {
			t.Errorf("%+v: %q, %v, want %q", h, b, err, want)
		}
		got, err := DecodeHeader(b)
		if err != nil || got != h {
			t.Errorf("%q: %+v, %v", b, got, err)
		}
		for i := range b {
			if _, err := DecodeHeader(b[:i]); err == nil {
				t.Errorf("%q truncated to %d bytes is accepted", b, i)
			}
		}
		if _, err := DecodeHeader(append(b, 0)); err == nil {
			t.Errorf("%q with a byte more is accepted", b)
		}
	}
}

func TestHeaderBounds(t *testing.T) {
	for name, h := range map[string]Header{
		"kind":                {Kind: 9, Service: "a"},
		"connect, no service": {Kind: KindConnect},
		"announce, service":   {Kind: KindAnnounce, Service: "a"},
		"flow, no service":    {Kind: KindFlow},
		"file, no service":    {Kind: KindFile},
		"operate, no service": {Kind: KindOperate},
		"operate, dot alone":  {Kind: KindOperate, Service: "."},
		"connect, dot":        {Kind: KindConnect, Service: ".ping"},
		"notice":              {Kind: KindNotice, Service: "idle"},
		"scheme":              {Kind: KindConnect, Service: "a", Scheme: "H"},
		"long scheme":         {Kind: KindConnect, Service: "a", Scheme: strings.Repeat("a", 17)},
		"host":                {Kind: KindConnect, Service: "a", Host: "a b"},
		"long host":           {Kind: KindConnect, Service: "a", Host: strings.Repeat("a", 254)},
	} {
		if b, err := h.Append(nil); err == nil {
			t.Errorf("%s: encoded as %q", name, b)
		}
	}
	// A mapped address is written as what it is.
	h := Header{Kind: KindConnect, Service: "a", Visitor: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")}
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeHeader(b); err != nil || got.Visitor != netip.MustParseAddrPort("192.0.2.1:1") {
		t.Errorf("mapped address: %+v, %v", got, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("\x01\x01\x03web\x05https\x0da.example.com\x04\xc0\x00\x02\x01\x1f\x90"))
	f.Add([]byte("\x01\x02\x00\x00\x00\x00"))
	f.Add([]byte("\x01\x03\x06active\x00\x00\x00"))
	f.Add([]byte("\x01\x07\x05.ping\x07operate\x05alice\x04\xc0\x00\x02\x01\x1f\x90"))
	f.Add([]byte("\x01\x06\x04boot\x04tftp\x00\x04\xc0\x00\x02\x01\x1f\x90"))
	f.Add([]byte("\x01\x04\x06syslog\x03udp\x00\x04\xc0\x00\x02\x01\x1f\x90"))
	f.Add([]byte("\x01\x01\x03web\x03tcp\x00\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		again, err := h.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q decodes to %+v and encodes to %q, %v", b, h, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(Encode(testHello()))
	f.Add([]byte(`{"version":6}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHello(b)
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) || r.Code == "" || !isPrintable(r.Message) {
				t.Fatalf("%q: error %v is not fit to be sent back", b, err)
			}
			return
		}
		again, err := DecodeHello(Encode(h))
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%+v, then %+v, %v", h, again, err)
		}
	})
}

func FuzzWelcome(f *testing.F) {
	f.Add(Encode(Welcome{Session: strings.Repeat("ab", 16), Resume: strings.Repeat("cd", 32)}))
	f.Add(Encode(Welcome{Error: &Refusal{Code: RefuseBusy, Message: "busy", Retry: true}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := DecodeWelcome(b)
		if err != nil {
			return
		}
		again, err := DecodeWelcome(Encode(w))
		if err != nil || !reflect.DeepEqual(again, w) {
			t.Fatalf("%+v, then %+v, %v", w, again, err)
		}
	})
}

func FuzzAnnounce(f *testing.F) {
	f.Add([]byte(`[{"name":"web","publish":"https://a.example.com","target_scheme":"http"}]`))
	f.Add([]byte(`[{"name":"web","publish":"https://a.example.com","target_scheme":"http","policy":{"deny":["::/0"],"hsts":{"max_age":1},"connection_rate":"1/h"}}]`))
	f.Add([]byte(`[{"name":"gate","publish":"rtsp://a.example.com/gate","target_scheme":"rtsp","camera":{"fan_out":true,"udp":true,"roaming":false}}]`))
	f.Add([]byte(`[{"name":"boot","publish":"tftp:///boot","target_scheme":"file","files":{"write":"replace","max_size":1073741824,"cache":true}}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeAnnounce(b)
		if err != nil {
			return
		}
		if again, err := DecodeAnnounce(Encode(list)); err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("%+v, then %+v, %v", list, again, err)
		}
	})
}

func FuzzURL(f *testing.F) {
	for _, s := range []string{
		"https://*.example.com/a/b", "tcp://:15432", "tcp://:15000-15999", "tcp://[::1]:*", "udp://:5514", "udp://:5000-5999", "tls://*.example.com", "unix:///run/a", "file:///C:/x",
		"rtsp://u:p@h/x", "rtsp://*.example.com/a/*", "rtsps://[::1]?a=b", "rtsp://%75:%3a%2F@h:8554/a/?pwd=x", "wss://[::1]", "http://10.0.0.1:80", "https://a.example.com/x/*",
		"tftp:///", "tftp:///boot/*", "tftp://h//srv/a/", "http://h/a/%20/", "tftp://h:69/token=x/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePublish(s); err == nil {
			if again, err := ParsePublish(p.String()); err != nil || again != p {
				t.Errorf("publish %q: %+v, then %q: %+v, %v", s, p, p.String(), again, err)
			}
		}
		if p, err := ParseTarget(s); err == nil && p.HasSecret() {
			bare := p
			bare.User, bare.Password = "", ""
			if got, want := p.String(), bare.String(); strings.ReplaceAll(got, "…@", "") != want {
				t.Errorf("target %q: shown as %q, and as %q without a user", s, got, want)
			}
		} else if err == nil {
			if again, err := ParseTarget(p.String()); err != nil || again != p {
				t.Errorf("target %q: %+v, then %q: %+v, %v", s, p, p.String(), again, err)
			}
		}
		if p, err := ParseSnapshot(s); err == nil && !p.HasSecret() {
			if again, err := ParseSnapshot(p.String()); err != nil || again != p {
				t.Errorf("snapshot %q: %+v, then %q: %+v, %v", s, p, p.String(), again, err)
			}
		}
		if p, err := ParsePattern(s); err == nil {
			if again, err := ParsePattern(p.String()); err != nil || again != p {
				t.Errorf("pattern %q: %+v, then %q: %+v, %v", s, p, p.String(), again, err)
			}
		}
	})
}

func TestPortError(t *testing.T) {
	denied := &net.OpError{Op: "listen", Net: "udp", Err: os.NewSyscallError("bind", syscall.EACCES)}
	if err := PortError(denied); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Error(err)
	}
	if taken := os.NewSyscallError("bind", syscall.EADDRINUSE); PortError(taken) != error(taken) {
		t.Error(PortError(taken))
	}
}

func TestParseAddress(t *testing.T) {
	for s, want := range map[string]string{
		"relay.example.com": "relay.example.com:443", "relay.example.com:8443": "relay.example.com:8443",
		"::1": "[::1]:443", "[::1]": "[::1]:443", "[::1]:8443": "[::1]:8443", "fe80::1%eth0": "[fe80::1%eth0]:443",
		"": "", "a b": "", ":443": "", "a:": "", "a:0": "", "a:https": "", "a:99999": "", "a:-1": "", "a:1:2": "", "https://a": "",
	} {
		if got, err := ParseAddress(s); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}
