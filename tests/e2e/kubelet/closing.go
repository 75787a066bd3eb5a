package main

import (
	"io"
	"net"
	"sync/atomic"
	"time"
)

// lingerTime bounds how long a connection that was closed here waits for the other side to close it as well.
const lingerTime = 30 * time.Second

// lingeringListener gives connections that lose nothing when they are closed.
//
// kubectl over SPDY pings every five seconds, also a server that has said everything. Where that ping reaches a socket
// which is closed while its kernel still has bytes to send, the kernel answers with a RST and throws those bytes away:
// kubectl then ends with "unexpected EOF" (kubernetes/kubernetes#60140). A real kubelet does that. This one does not, so
// that bytes which are missing at the end of a test are bytes that were lost further on.
type lingeringListener struct{ *net.TCPListener }

func (l lingeringListener) Accept() (net.Conn, error) {
	connection, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &lingeringConn{TCPConn: connection}, nil
}

type lingeringConn struct {
	*net.TCPConn
	closed atomic.Bool
}

func (c *lingeringConn) Read(data []byte) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	count, err := c.TCPConn.Read(data)
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return count, err
}

// Close sends a FIN after all that was written, and drops what still arrives until the other side's FIN.
func (c *lingeringConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	_ = c.SetReadDeadline(time.Now()) // ends a Read under way
	if err := c.CloseWrite(); err != nil {
		return c.TCPConn.Close()
	}
	go func() {
		_ = c.TCPConn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, c.TCPConn)
		_ = c.TCPConn.Close()
	}()
	return nil
}
