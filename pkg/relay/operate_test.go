package relay

import (
	"reflect"
	"strings"
	"testing"
)

// What an operator and a private relay say, as docs/protocol.md shows it.
func TestOperateGolden(t *testing.T) {
	for want, b := range map[string][]byte{
		"\x00\x10{\"service\":\"db\"}":                      AppendOperate(nil, OperateRequest{Service: "db"}),
		"\x00\x21{\"service\":\"dns\",\"network\":\"udp\"}": AppendOperate(nil, OperateRequest{Service: "dns", Network: "udp"}),
		"\x00\x10{\"scheme\":\"tcp\"}":                      AppendOperate(nil, OperateAnswer{Scheme: "tcp"}),
	} {
		if string(b) != want {
			t.Errorf("%q, want %q", b, want)
		}
		message, rest, err := CutOperate(append(b, "rest"...))
		if err != nil || string(message) != want[2:] || string(rest) != "rest" {
			t.Errorf("%q: cut into %q and %q, %v", b, message, rest, err)
		}
		for i := range b {
			if message, _, err := CutOperate(b[:i]); message != nil || err != nil {
				t.Errorf("%q truncated to %d bytes: %q, %v", b, i, message, err)
			}
		}
	}
	for _, b := range []string{"\x00\x00", "\x10\x01", "\xff\xff"} {
		if _, _, err := CutOperate([]byte(b)); err == nil {
			t.Errorf("a length of %x is accepted", b)
		}
	}
	// The longest error fits, whatever is in it.
	e := NewOperateError(OperateInternal, "%s", strings.Repeat("<\n", MaxOperateText))
	b := AppendOperate(nil, OperateAnswer{Error: e})
	message, _, err := CutOperate(b)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := DecodeOperateAnswer(message); err != nil || !reflect.DeepEqual(a.Error, e) {
		t.Errorf("%+v, %v", a, err)
	}
	keys := make([]string, MaxOperateKeys)
	for i := range keys {
		keys[i] = testKey
	}
	if message, _, err = CutOperate(AppendOperate(nil, OperateReply{Keys: keys})); err != nil {
		t.Fatal(err)
	}
	if r, err := DecodeOperateReply(message); err != nil || len(r.Keys) != MaxOperateKeys {
		t.Errorf("%d keys, %v", len(r.Keys), err)
	}
}

func TestOperateBounds(t *testing.T) {
	for _, s := range []string{
		`{"service":""}`, `{"service":"."}`, `{"service":"..ping"}`, `{"service":"a b"}`, `{"service":"db","network":"sctp"}`,
		`{"service":".socks","address":"` + strings.Repeat("a", MaxAddress+1) + `"}`, `{"service":".socks","address":"a\nb"}`, `[]`, ``,
	} {
		if r, err := DecodeOperateRequest([]byte(s)); err == nil {
			t.Errorf("%s is accepted: %+v", s, r)
		}
	}
	for _, s := range []string{`{"scheme":"` + strings.Repeat("a", 17) + `"}`, `{"error":{}}`, `{"error":{"code":"internal","text":"\u001b[2J"}}`} {
		if a, err := DecodeOperateAnswer([]byte(s)); err == nil {
			t.Errorf("%s is accepted: %+v", s, a)
		}
	}
	for _, s := range []string{`{"keys":["ed25519:"]}`, `{"error":{"code":"a\nb"}}`} {
		if r, err := DecodeOperateReply([]byte(s)); err == nil {
			t.Errorf("%s is accepted: %+v", s, r)
		}
	}
	for s, code := range map[string]RefusalCode{
		`{"version":5}`:                            RefuseVersion,
		`{"version":7}`:                            RefuseVersion,
		`{"version":6,"session":"a"}`:              RefuseMalformed,
		`{"version":6,"session":"a","resume":"b"}`: RefuseMalformed,
		`{"version":6,"software":"\n"}`:            RefuseMalformed,
		`nothing`:                                  RefuseMalformed,
	} {
		if _, err := DecodeOperateHello([]byte(s)); err == nil || err.(*Refusal).Code != code {
			t.Errorf("%s: %v, want %s", s, err, code)
		}
	}
	h := OperateHello{Version: WireVersion, Session: strings.Repeat("a", 32), Resume: strings.Repeat("b", 64), Software: "tunnelctl 1"}
	if got, err := DecodeOperateHello(Encode(h)); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzOperate(f *testing.F) {
	f.Add(AppendOperate(nil, OperateRequest{Service: "db"}))
	f.Add(AppendOperate(nil, OperateRequest{Service: ".socks", Network: "udp", Address: "[::1]:53"}))
	f.Add(AppendOperate(nil, OperateAnswer{Scheme: "http"}))
	f.Add(AppendOperate(nil, OperateReply{Keys: []string{testKey}}))
	f.Add(AppendOperate(nil, OperateReply{Error: NewOperateError(OperateAway, "away")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		message, _, err := CutOperate(b)
		if err != nil || message == nil {
			return
		}
		again := func(b []byte) []byte {
			message, rest, err := CutOperate(b)
			if err != nil || len(rest) > 0 {
				t.Fatalf("%q does not come back: %v", b, err)
			}
			return message
		}
		if r, err := DecodeOperateRequest(message); err == nil {
			if got, err := DecodeOperateRequest(again(AppendOperate(nil, r))); err != nil || got != r {
				t.Fatalf("%+v, then %+v, %v", r, got, err)
			}
		}
		if a, err := DecodeOperateAnswer(message); err == nil {
			if got, err := DecodeOperateAnswer(again(AppendOperate(nil, a))); err != nil || !reflect.DeepEqual(got, a) {
				t.Fatalf("%+v, then %+v, %v", a, got, err)
			}
		}
		if r, err := DecodeOperateReply(message); err == nil {
			if got, err := DecodeOperateReply(again(AppendOperate(nil, r))); err != nil || len(got.Keys) != len(r.Keys) || !reflect.DeepEqual(got.Error, r.Error) {
				t.Fatalf("%+v, then %+v, %v", r, got, err)
			}
		}
		if h, err := DecodeOperateHello(message); err == nil {
			if got, err := DecodeOperateHello(Encode(h)); err != nil || got != h {
				t.Fatalf("%+v, then %+v, %v", h, got, err)
			}
		}
	})
}
