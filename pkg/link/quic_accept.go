package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/websocket"
)

// AcceptQUIC makes a link of a connection on which ALPN was negotiated. It is called
// on a loop, and calls hello there as Accept does.
func AcceptQUIC(loop *evloop.Loop, conn *quic.Conn, hello func(*Incoming, error)) {
	loop.Spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, fmt.Errorf("no hello within %v", handshakeTimeout))
		defer cancel()
		control, message, err := readHello(ctx, conn)
		if err == nil && loop.Post(func() {
			l := newQUICLink(loop, conn, control, nil)
			l.fail = func(err error) { hello(nil, err) }
			l.heard(message, hello)
		}) {
			return
		}
		status := websocket.StatusPolicy
		if e, ok := errors.AsType[*websocket.Error](err); ok {
			status = e.Status
		}
		conn.CloseWithError(quic.ApplicationErrorCode(status), fmt.Sprint(err))
		loop.Post(func() { hello(nil, err) })
	})
}

// readHello waits for the control channel and the Hello on it.
func readHello(ctx context.Context, conn *quic.Conn) (*quic.Stream, []byte, error) {
	control, err := conn.AcceptStream(ctx)
	if err != nil {
		return nil, nil, cause(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { control.CancelRead(0) })
	message, err := readMessage(control)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return control, message, cause(ctx, err)
}

// cause is why ctx has ended, if that is what err comes from.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return quicError(err)
}
