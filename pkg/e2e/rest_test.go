//go:build linux

package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// pythonMethods calls methods of a relay over a WebSocket: many at a time, a feed, wrong ones.
const pythonMethods = `
import asyncio, json, sys, websockets
uri, token = sys.argv[1:]
async def main():
    async with websockets.connect(uri, extra_headers={"Authorization": "Bearer " + token}) as ws:
        send = lambda **m: ws.send(json.dumps(m))
        for i in range(20):
            await send(id=i, call="sites/List")
        answers = {}
        while len(answers) < 20:
            m = json.loads(await ws.recv())
            answers[m["id"]] = m["result"]
        assert all(a[0]["name"] == "office" for a in answers.values()), answers
        await send(id="w", call="status/Watch", **{"in": {"every_s": 0.2}}, ahead=2)
        for i in range(2):
            m = json.loads(await ws.recv())
            assert m["id"] == "w" and m["event"]["sites"][0]["name"] == "office", m
        # It waits now; other calls do not.
        await send(id=1, call="relay/Version")
        m = json.loads(await ws.recv())
        assert m["id"] == 1 and m["result"]["wire_version"] > 0, m
        await send(id="w", more=1)
        m = json.loads(await ws.recv())
        assert m["id"] == "w" and "event" in m, m
        await send(id="w", cancel=True)
        m = json.loads(await ws.recv())
        assert m["error"]["errorCode"] == 499, m
        for message, code in [
            ({"id": 2, "call": "sites/Nope"}, 404),
            ({"id": 3, "call": "status/Watch", "in": {"every_s": 1000}}, 400),
            ({"id": 4, "call": "sites/Get", "in": {"name": 17}}, 400),
            ({"id": 5, "call": "sites/Get", "in": {"name": "nobody"}}, 404),
        ]:
            await send(**message)
            m = json.loads(await ws.recv())
            assert m["id"] == message["id"] and m["error"]["errorCode"] == code, m
        await asyncio.wait_for(await ws.ping(), 30)
        await ws.send("no JSON")
        m = json.loads(await ws.recv())
        assert m["id"] is None and m["error"]["errorCode"] == 400, m
        await ws.send(b"binary")
        try:
            await ws.recv()
            assert False
        except websockets.ConnectionClosed as e:
            assert e.rcvd.code == 1003, e
    for headers in [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer " + token, "Origin": "https://evil.example"}]:
        try:
            async with websockets.connect(uri, extra_headers=headers):
                assert False, headers
        except websockets.InvalidStatusCode as e:
            assert e.status_code in (401, 403), e
asyncio.run(main())
print("all good")
`

// The admin API in the hands of others' programs: WebSockets of Python, the document judged by one tool and made a client of by another.
func TestMethods(t *testing.T) {
	t.Parallel()
	s := startSystemDirect(t, service{"hidden", "", "tcp://127.0.0.1:1"})
	if out := run(t, exec.Command(python, "-c", pythonMethods, "ws://"+s.admin+"/api/ws", s.token())); out != "all good\n" {
		t.Error(out)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.admin+"/api/openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(b)
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, b)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	if doc.Paths.Find("/api/sites/List") == nil {
		t.Error("the document has no sites/List")
	}

	// A client of it, with a call.
	dir := tempDir(t)
	spec, generated, overlay := filepath.Join(dir, "openapi.json"), filepath.Join(dir, "generated.go"), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(spec, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command(builtTool(t, "oapi-codegen"), "-generate", "types,client", "-package", "main", "-o", generated, spec))
	here, err := filepath.Abs("testdata/restclient")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "generated.go"): generated}})
	if err := os.WriteFile(overlay, files, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "restclient")
	run(t, exec.Command("go", "build", "-overlay", overlay, "-o", program, "./testdata/restclient"))
	cmd := exec.Command(program, "http://"+s.admin)
	cmd.Stdin = strings.NewReader(s.token()) // not in argv, where others see it
	if out := run(t, cmd); out != "office connected\n" {
		t.Error(out)
	}
}
