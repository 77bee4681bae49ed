package operate

import (
	"crypto/ed25519"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"testing/synctest"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
)

// Whoever has the public relay can end a stream in good order between two records. The operator must not take what has come until
// then for all.
func TestCutBetweenRecords(t *testing.T) {
	for name, text := range map[string]string{"at once": "", "in the middle": "half of it"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
				if err != nil {
					t.Fatal(err)
				}
				defer core.Close()
				loop, key := core.Loop(0), newKey(t)
				ours, theirs := net.Pipe()
				conn := &conn{loop: loop, site: "office", service: "db"}
				made := make(chan *evloop.NetConn)
				loop.Post(func() {
					end, err := loop.Attach(ours)
					if err != nil {
						t.Error(err)
					}
					made <- loop.NetConn(end, address{}, address{"office", "db"}, nil)
				})
				conn.nc = <-made
				defer conn.nc.Close()

				relays := make(chan error, 1)
				go func() { relays <- answerAndCut(theirs, key, text) }()
				c := &Client{Trust: func(string, string, []string) error { return nil }}
				if err := conn.ask(c, relay.OperateRequest{Service: "db"}); err != nil {
					t.Fatalf("ask: %v", err)
				}
				b, err := io.ReadAll(conn)
				if string(b) != text {
					t.Errorf("read %q, want %q", b, text)
				}
				wantCode(t, err, relay.OperateUnreachable, "was cut on its way")
				if err := <-relays; err != nil {
					t.Errorf("the relays: %v", err)
				}
			})
		})
	}
}

// answerAndCut is both relays: it agrees to what is asked for, sends text, and ends the stream without the end of TLS.
func answerAndCut(nc net.Conn, key ed25519.PrivateKey, text string) error {
	defer nc.Close()
	if _, err := nc.Write(relay.AppendOperate(nil, relay.OperateReply{Keys: []string{public25519(key)}})); err != nil {
		return err
	}
	cfg, err := auth.OperateServer(key)
	if err != nil {
		return err
	}
	server := tls.Server(nc, cfg)
	if _, err := server.Read(make([]byte, 256)); err != nil { // the request, in one record
		return err
	}
	_, err = server.Write(append(relay.AppendOperate(nil, relay.OperateAnswer{Scheme: "tcp"}), text...))
	return err
}

// A stream that ends without the end of TLS in it does not end well for the service either.
func TestCutUpload(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		type upload struct {
			text string
			err  error
		}
		got := make(chan upload, 1)
		w.startPrivate(w.key, func(r *private.Relay) {
			w.serve(r, "files", func(c net.Conn) {
				defer c.Close()
				b, err := io.ReadAll(c)
				got <- upload{string(b), err}
			})
		})
		c := w.operator("alice")
		for _, cut := range []bool{false, true} {
			opened := w.open(c, "files")
			if _, err := io.WriteString(opened, "half of it"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			end := opened.CloseWrite
			if cut {
				end = opened.(*conn).nc.CloseWrite // as somebody on the way can
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			u := <-got
			if cut != (u.err != nil) || !cut && u.text != "half of it" {
				t.Errorf("cut %v: the service has read %q, %v", cut, u.text, u.err)
			}
			if _, err := io.ReadAll(opened); cut != (err != nil) {
				t.Errorf("cut %v: the operator reads %v", cut, err)
			}
			opened.Close()
		}
	})
}
