package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	socketCalls = 64 // that a Socket has under way: more wait here; the default of Limits.SocketCalls
	ahead       = 64 // events that may be on the way to a Follow; half as many are asked for at once
	writeTime   = 30 * time.Second
	pingTime    = 30 * time.Second // between pings of a Socket, and for their answers
)

// A Socket calls methods over one WebSocket, many at a time. It may be used from several goroutines. DialWebSocket makes it, and
// Close ends it. When the connection is lost what is under way fails with an error that is a *LostError; to connect again is
// the caller's. It has two goroutines: one reads, one asks every 30 s whether the server is still there.
type Socket struct {
	conn    *websocket.Conn
	slots   chan struct{} // one for each call under way
	ended   chan struct{} // closed when the reader has
	watched chan struct{} // closed when the other one has, too
	stop    context.CancelFunc

	mu      sync.Mutex
	last    uint64             // id
	waiting map[uint64]*waiter // by id
	lost    error              // set before ended is closed
}

// A waiter is a call or feed under way.
type waiter struct {
	feed bool
	got  chan answer // of size 1, or for a feed of all that can be on the way; never full
}

// answer is a message of a server.
type answer struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result"`
	Event  json.RawMessage `json:"event"`
	End    bool            `json:"end"`
	Error  *Error          `json:"error"`
}

// A LostError is why a call on a Socket has no answer: its connection has ended. Whether the call was made is not known.
type LostError struct{ Cause error }

func (e *LostError) Error() string { return "WebSocket: " + e.Cause.Error() }
func (e *LostError) Unwrap() error { return e.Cause }

// DialWebSocket connects to the WebSocket of a server: ws://127.0.0.1:7070/api/ws. http and https are taken for ws and wss.
// header is that of the request, with Authorization for example; client makes it, nil: http.DefaultClient. ctx bounds the
// connecting alone. A refusal is an *Error.
func DialWebSocket(ctx context.Context, url string, header http.Header, client *http.Client) (*Socket, error) {
	conn, res, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: client, HTTPHeader: header})
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols && res.Body != nil {
			b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
			e := new(Error)
			if json.Unmarshal(b, e) == nil && e.Text != "" {
				e.Code = or(e.Code, res.StatusCode)
				return nil, e
			}
			return nil, &Error{res.StatusCode, "answered " + res.Status + ", and is no server of these methods"}
		}
		return nil, err
	}
	conn.SetReadLimit(maxAnswer)
	reading, stop := context.WithCancel(context.Background())
	k := &Socket{
		conn:    conn,
		slots:   make(chan struct{}, socketCalls),
		ended:   make(chan struct{}),
		watched: make(chan struct{}),
		stop:    stop,
		waiting: make(map[uint64]*waiter),
	}
	go k.read(reading)
	go k.watch(reading)
	return k, nil
}

// watch ends the connection when its server does not answer any more, and ends with it.
func (k *Socket) watch(ctx context.Context) {
	t := time.NewTicker(pingTime)
	defer t.Stop()
	defer close(k.watched)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		answer, cancel := context.WithTimeout(ctx, pingTime)
		err := k.conn.Ping(answer)
		cancel()
		if err != nil && ctx.Err() == nil {
			k.mu.Lock()
			if k.lost == nil {
				k.lost = &LostError{fmt.Errorf("the server has not answered for %v", pingTime)}
			}
			k.mu.Unlock()
			k.stop()
			return
		}
	}
}

// read deals the answers out until the connection ends.
func (k *Socket) read(ctx context.Context) {
	err := k.deal(ctx)
	k.mu.Lock()
	if k.lost == nil {
		k.lost = &LostError{err}
	}
	k.mu.Unlock()
	k.conn.CloseNow()
	k.stop()
	close(k.ended)
}

func (k *Socket) deal(ctx context.Context) error {
	for {
		_, b, err := k.conn.Read(ctx)
		if err != nil {
			return err
		}
		var a answer
		if err := json.Unmarshal(b, &a); err != nil {
			return fmt.Errorf("unexpected message: %w", err)
		}
		k.mu.Lock()
		w := k.waiting[a.ID]
		if w != nil && (a.Event == nil || !w.feed) {
			delete(k.waiting, a.ID)
		}
		k.mu.Unlock()
		if w == nil { // nobody waits for it any more
			continue
		}
		select {
		case w.got <- a:
		default:
			return errors.New("the server sends more events than were asked for")
		}
	}
}

// Close ends the connection in good order, and with it what is under way.
func (k *Socket) Close() error {
	k.mu.Lock()
	if k.lost == nil {
		k.lost = &LostError{errors.New("was closed")}
	}
	k.mu.Unlock()
	err := k.conn.Close(websocket.StatusNormalClosure, "")
	k.stop()
	<-k.ended
	<-k.watched
	return err
}

// Done is closed when the connection has ended.
func (k *Socket) Done() <-chan struct{} { return k.ended }

func (k *Socket) write(ctx context.Context, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if err := k.conn.Write(ctx, websocket.MessageText, b); err != nil {
		k.stop() // half a message may be out
		return err
	}
	return nil
}

// begin sends a call.
func (k *Socket) begin(ctx context.Context, name string, in any, feed bool) (uint64, *waiter, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, nil, err
	}
	if ctx.Err() != nil { // a message that was begun has to be ended: so this is the last time to ask
		return 0, nil, ctx.Err()
	}
	w := &waiter{feed: feed, got: make(chan answer, 1)}
	if feed {
		w.got = make(chan answer, ahead+1)
	}
	k.mu.Lock()
	if err := k.lost; err != nil {
		k.mu.Unlock()
		return 0, nil, err
	}
	k.last++
	id := k.last
	k.waiting[id] = w
	k.mu.Unlock()
	b := strconv.AppendUint([]byte(`{"id":`), id, 10)
	b = append(b, `,"call":`...)
	quoted, _ := json.Marshal(name)
	b = append(b, quoted...)
	if feed {
		b = strconv.AppendInt(append(b, `,"ahead":`...), ahead, 10)
	}
	b = append(append(append(b, `,"in":`...), body...), '}')
	if err := k.write(context.WithoutCancel(ctx), b); err != nil {
		k.forget(id)
		return 0, nil, k.cause(err)
	}
	return id, w, nil
}

// forget has answers to id dropped, and reports whether there is to be another one.
func (k *Socket) forget(id uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.waiting[id]
	delete(k.waiting, id)
	return ok
}

// cause is why the connection has ended; err, if it has not.
func (k *Socket) cause(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lost != nil {
		return k.lost
	}
	return &LostError{err}
}

// cancel tells the server that nobody waits for id any more.
func (k *Socket) cancel(id uint64) {
	if k.forget(id) {
		k.tellCancelled(id)
	}
}

func (k *Socket) tellCancelled(id uint64) {
	k.write(context.Background(), fmt.Appendf(nil, `{"id":%d,"cancel":true}`, id))
}

// Call implements Caller.
func (k *Socket) Call(ctx context.Context, name string, in, out any) error {
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ended:
		return k.cause(nil)
	}
	id, w, err := k.begin(ctx, name, in, false)
	if err != nil {
		return err
	}
	var a answer
	select {
	case a = <-w.got:
	case <-ctx.Done():
		k.cancel(id)
		return ctx.Err()
	case <-k.ended:
		select {
		case a = <-w.got: // it came before the end
		default:
			return k.cause(nil)
		}
	}
	switch {
	case a.Error != nil:
		return a.Error
	case a.Result == nil:
		k.tellCancelled(id)
		return Errorf(http.StatusBadRequest, "%s is a feed: follow it", name)
	}
	if content, ok := out.(*Content); ok {
		var c carried
		if err := json.Unmarshal(a.Result, &c); err != nil {
			return fmt.Errorf("%s: unexpected answer: %w", name, err)
		}
		*content = c.content()
		return nil
	}
	if err := decodeResult(a.Result, out); err != nil {
		return fmt.Errorf("%s: unexpected answer: %w", name, err)
	}
	return nil
}

// Follow implements Caller.
func (k *Socket) Follow(ctx context.Context, name string, in any, each func(decode func(any) error) error) error {
	id, w, err := k.begin(ctx, name, in, true)
	if err != nil {
		return err
	}
	defer k.cancel(id)
	taken := 0
	for {
		var a answer
		select {
		case a = <-w.got:
		case <-ctx.Done():
		case <-k.ended:
			select {
			case a = <-w.got: // it came before the end
			default:
				return k.cause(nil)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case a.Error != nil:
			return a.Error
		case a.Event == nil && a.End:
			return nil
		case a.Event == nil:
			return Errorf(http.StatusBadRequest, "%s is no feed: call it", name)
		}
		if err := each(func(out any) error { return json.Unmarshal(a.Event, out) }); err != nil {
			return err
		}
		if taken++; taken == ahead/2 {
			if err := k.write(context.WithoutCancel(ctx), fmt.Appendf(nil, `{"id":%d,"more":%d}`, id, taken)); err != nil {
				return k.cause(err)
			}
			taken = 0
		}
	}
}
