// reference: an HTTP-level reverse tunnel in idiomatic Go (x/net/http2 and httputil.ReverseProxy), of the same design as
// Moorline: the agent dials, the server is the HTTP/2 client on that connection. No authentication, no limits, no log.
//
// The same program is the origin of the benchmarks and some of their callers, so that nothing but Go has to be there.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"

	"golang.org/x/net/http2"
)

const maxStreams = 16384

var (
	mode     = flag.String("mode", "server", "server, agent or origin; watches or exec: callers")
	tunnel   = flag.String("tunnel", "127.0.0.1:0", "where the server waits for the agent")
	front    = flag.String("front", "127.0.0.1:0", "plain listener: of the server, or of the origin")
	frontTLS = flag.String("front-tls", "", "listener with TLS and HTTP/2: of the server, or of the origin")
	origin   = flag.String("origin", "", "URL of the origin (agent)")
	certs    = flag.String("certs", "", "folder with ca.crt, server.crt, server.key, agent.crt, agent.key")
)

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte  { return *(b.pool.Get().(*[]byte)) }
func (b *bufferPool) Put(x []byte) { b.pool.Put(&x) }

func newProxy(target *url.URL, transport http.RoundTripper) *httputil.ReverseProxy {
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	proxy.BufferPool = &bufferPool{sync.Pool{New: func() any { x := make([]byte, 32<<10); return &x }}}
	proxy.FlushInterval = -1
	return proxy
}

func tlsConfig(name string, protocols ...string) *tls.Config {
	pem, err := os.ReadFile(*certs + "/ca.crt")
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(*certs+"/"+name+".crt", *certs+"/"+name+".key")
	check(err)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ClientCAs: roots, ServerName: "localhost", NextProtos: protocols, MinVersion: tls.VersionTLS12}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// serve runs the handler on the plain listener, and on the one with TLS where there is one.
func serve(handler http.Handler) {
	if *frontTLS != "" {
		go func() {
			server := &http.Server{Addr: *frontTLS, Handler: handler, TLSConfig: tlsConfig("server", "h2", "http/1.1")}
			check(http2.ConfigureServer(server, &http2.Server{MaxConcurrentStreams: 250}))
			check(server.ListenAndServeTLS("", ""))
		}()
	}
	check(http.ListenAndServe(*front, handler))
}

func runAgent() {
	target, err := url.Parse(*origin)
	check(err)
	config := tlsConfig("agent", "h2")
	conn, err := tls.Dial("tcp", *tunnel, config)
	check(err)
	upstream := &http.Transport{MaxIdleConns: 20000, MaxIdleConnsPerHost: 20000, DisableCompression: true, TLSClientConfig: tlsConfig("agent")}
	server := &http2.Server{MaxConcurrentStreams: maxStreams}
	server.ServeConn(conn, &http2.ServeConnOpts{Handler: upgradesFor(target, upstream, newProxy(target, upstream))})
}

// runServer proxies what comes to the front through the last tunnel that an agent opened.
func runServer() {
	config := tlsConfig("server", "h2")
	config.ClientAuth = tls.RequireAndVerifyClientCert
	listener, err := tls.Listen("tcp", *tunnel, config)
	check(err)
	transport := &http2.Transport{DisableCompression: true, StrictMaxConcurrentStreams: true}
	var lock sync.RWMutex
	var current *http2.ClientConn
	go func() {
		for {
			conn, err := listener.Accept()
			check(err)
			if err := conn.(*tls.Conn).Handshake(); err != nil {
				log.Print(err)
				continue
			}
			client, err := transport.NewClientConn(conn)
			if err != nil {
				log.Print(err)
				continue
			}
			lock.Lock()
			current = client
			lock.Unlock()
		}
	}()
	target, _ := url.Parse("http://tunnel")
	through := roundTripper(func(request *http.Request) (*http.Response, error) {
		lock.RLock()
		client := current
		lock.RUnlock()
		if client == nil {
			return nil, errors.New("no agent is connected")
		}
		return client.RoundTrip(request)
	})
	serve(upgradesThrough(newProxy(target, through), through))
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

func main() {
	flag.Parse()
	switch *mode {
	case "agent":
		runAgent()
	case "origin":
		serve(originHandler())
	case "watches":
		runWatches()
	case "exec":
		runExec()
	default:
		runServer()
	}
}
