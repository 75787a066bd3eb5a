package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// What httputil.ReverseProxy does for an upgrade ends at an HTTP/1.1 connection: it wants a 101 from its transport, which
// HTTP/2 does not have. So both ends of the reference carry an upgrade as an extended CONNECT (RFC 8441), as Moorline
// does; x/net/http2 allows that with GODEBUG=http2xconnect=1. The bytes go through buffers of the size and with the
// flushes that httputil.ReverseProxy uses.

const methodField = "Reference-Method"

var copyBuffers = sync.Pool{New: func() any { x := make([]byte, 32<<10); return &x }}

// upgradesThrough sends upgrades through the tunnel as an extended CONNECT, and everything else to the proxy.
func upgradesThrough(proxy http.Handler, tunnel http.RoundTripper) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("Upgrade")
		if token == "" {
			proxy.ServeHTTP(w, r)
			return
		}
		reader, writer := io.Pipe()
		defer writer.CloseWithError(errors.New("the caller has gone"))
		header := r.Header.Clone()
		header.Del("Connection")
		header.Del("Upgrade")
		header.Set(":protocol", token)
		header.Set(methodField, r.Method)
		target := &url.URL{Scheme: "https", Host: "tunnel", Path: r.URL.Path, RawQuery: r.URL.RawQuery}
		connect := &http.Request{Method: http.MethodConnect, URL: target, Host: "tunnel", Header: header, Body: reader, ContentLength: -1}
		response, err := tunnel.RoundTrip(connect.WithContext(r.Context()))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			w.WriteHeader(response.StatusCode)
			io.Copy(w, response.Body)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer conn.Close()
		fmt.Fprintf(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n", token)
		response.Header.Write(buffered)
		buffered.WriteString("\r\n")
		if buffered.Flush() != nil {
			return
		}
		go func() {
			_, err := copyBytes(writer, buffered)
			writer.CloseWithError(err)
		}()
		copyBytes(conn, response.Body)
	})
}

// upgradesFor makes an upgrade of HTTP/1.1 to the origin out of an extended CONNECT; everything else goes to the proxy.
func upgradesFor(target *url.URL, upstream http.RoundTripper, proxy *httputil.ReverseProxy) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get(":protocol")
		if r.Method != http.MethodConnect || token == "" {
			proxy.ServeHTTP(w, r)
			return
		}
		header := r.Header.Clone()
		method := header.Get(methodField)
		header.Del(methodField)
		header.Del(":protocol")
		header.Set("Connection", "Upgrade")
		header.Set("Upgrade", token)
		where := *target
		where.Path, where.RawQuery = r.URL.Path, r.URL.RawQuery
		upgrade := &http.Request{Method: method, URL: &where, Host: target.Host, Header: header}
		response, err := upstream.RoundTrip(upgrade.WithContext(r.Context()))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		stream, ok := response.Body.(io.ReadWriteCloser)
		if response.StatusCode != http.StatusSwitchingProtocols || !ok {
			w.WriteHeader(response.StatusCode)
			io.Copy(w, response.Body)
			return
		}
		controller := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		controller.Flush()
		go copyBytes(stream, r.Body)
		copyBytes(flushing{w, controller}, stream)
	})
}

type flushing struct {
	io.Writer
	controller *http.ResponseController
}

func (f flushing) Write(piece []byte) (int, error) {
	n, err := f.Writer.Write(piece)
	if err == nil {
		err = f.controller.Flush()
	}
	return n, err
}

// onlyReader and onlyWriter keep io.CopyBuffer from taking another way than through the buffer, as in ReverseProxy.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

func copyBytes(to io.Writer, from io.Reader) (int64, error) {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	return io.CopyBuffer(onlyWriter{to}, onlyReader{from}, *buffer)
}

// execHandler is the origin's end of an upgrade. It sends ?bytes= random bytes; or takes ?take= bytes and answers with
// one; and then sends back whatever comes.
func execHandler(random []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var size, take int64
		fmt.Sscan(r.URL.Query().Get("bytes"), &size)
		fmt.Sscan(r.URL.Query().Get("take"), &take)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		for size > 0 {
			piece := random[:min(size, int64(len(random)))]
			if _, err := conn.Write(piece); err != nil {
				return
			}
			size -= int64(len(piece))
		}
		if take > 0 {
			large := bufio.NewReaderSize(buffered, 256<<10)
			if _, err := io.CopyN(io.Discard, large, take); err != nil {
				return
			}
			conn.Write([]byte{'.'})
		}
		echo(conn, buffered)
	}
}

func echo(conn net.Conn, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := conn.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
