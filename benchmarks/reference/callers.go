package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// The callers of the benchmarks that load.c is not: watches over TLS, with HTTP/1.1 or HTTP/2, and upgrades.

var (
	target   = flag.String("url", "", "what the callers ask for (watches, exec)")
	token    = flag.String("token", "", "bearer token of the callers")
	count    = flag.Int("n", 1, "how many watches, or echoes")
	useHTTP2 = flag.Bool("h2", false, "watches over HTTP/2")
	sending  = flag.Int64("send", 0, "bytes that the caller of an upgrade sends")
	taking   = flag.Int64("receive", 0, "bytes that the caller of an upgrade gets")
)

const (
	streamsEach = 200
	openAtOnce  = 32
)

// runWatches opens -n watches, prints a line of JSON when each has had its first event, and then one for each line of
// standard input: how many events there were since the line before, how late they were, and how many watches have ended.
func runWatches() {
	where, err := url.Parse(*target)
	check(err)
	var late lateness
	var ended atomic.Int64
	var opened sync.WaitGroup
	places := make(chan struct{}, openAtOnce)
	trips := make([]http.RoundTripper, (*count+streamsEach-1)/streamsEach)
	for i := range trips {
		trips[i] = watchTransport()
	}
	started := time.Now()
	for i := range *count {
		opened.Add(1)
		places <- struct{}{}
		go func() {
			first := sync.OnceFunc(func() { <-places; opened.Done() })
			err := follow(trips[i/streamsEach], where, &late, first)
			ended.Add(1)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			first()
		}()
	}
	opened.Wait()
	late.take()
	report(map[string]float64{"opened": float64(*count) - float64(ended.Load()), "seconds": time.Since(started).Seconds()})
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		numbers := quantiles(late.take())
		numbers["ended"] = float64(ended.Load())
		report(numbers)
	}
}

// watchTransport is one connection with HTTP/2, or as many as there are requests with HTTP/1.1.
func watchTransport() http.RoundTripper {
	config := tlsConfig("agent")
	config.Certificates = nil
	if *useHTTP2 {
		config.NextProtos = []string{"h2"}
		return &http2.Transport{TLSClientConfig: config, StrictMaxConcurrentStreams: true, DisableCompression: true}
	}
	config.NextProtos = []string{"http/1.1"}
	return &http.Transport{TLSClientConfig: config, DisableCompression: true, ReadBufferSize: 1024, WriteBufferSize: 1024}
}

func follow(transport http.RoundTripper, where *url.URL, late *lateness, first func()) error {
	request := &http.Request{Method: http.MethodGet, URL: where, Host: where.Host, Header: authorization()}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", where, response.Status)
	}
	events := bufio.NewReaderSize(response.Body, 256)
	for {
		line, err := events.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("a watch has ended: %w", err)
		}
		now := time.Now().UnixNano()
		if start := len(eventStart); len(line) > start+19 {
			if sent, err := strconv.ParseInt(string(line[start:start+19]), 10, 64); err == nil {
				late.add(float64(now-sent) / 1e6)
			}
		}
		first()
	}
}

func authorization() http.Header {
	header := http.Header{}
	if *token != "" {
		header.Set("Authorization", "Bearer "+*token)
	}
	return header
}

type lateness struct {
	lock    sync.Mutex
	samples []float64
}

func (l *lateness) add(milliseconds float64) {
	l.lock.Lock()
	l.samples = append(l.samples, milliseconds)
	l.lock.Unlock()
}

func (l *lateness) take() []float64 {
	l.lock.Lock()
	defer l.lock.Unlock()
	taken := l.samples
	l.samples = nil
	return taken
}

func quantiles(samples []float64) map[string]float64 {
	numbers := map[string]float64{"count": float64(len(samples))}
	if len(samples) > 0 {
		slices.Sort(samples)
		numbers["p50_ms"] = samples[len(samples)/2]
		numbers["p99_ms"] = samples[len(samples)*99/100]
	}
	return numbers
}

func report(numbers map[string]float64) {
	check(json.NewEncoder(os.Stdout).Encode(numbers))
}

// runExec upgrades a connection as kubectl exec does, takes -receive bytes, sends -send bytes, and then sends one byte
// after the other and waits for each to come back, -n times.
func runExec() {
	where, err := url.Parse(*target)
	check(err)
	where.RawQuery = fmt.Sprintf("command=cat&bytes=%d&take=%d", *taking, *sending)
	conn := dial(where)
	defer conn.Close()
	header := authorization()
	header.Set("Connection", "Upgrade")
	header.Set("Upgrade", "SPDY/3.1")
	header.Set("X-Stream-Protocol-Version", "v4.channel.k8s.io")
	check((&http.Request{Method: http.MethodPost, URL: where, Host: where.Host, Header: header}).Write(conn))
	from := bufio.NewReaderSize(conn, 256<<10)
	response, err := http.ReadResponse(from, nil)
	check(err)
	if response.StatusCode != http.StatusSwitchingProtocols {
		check(fmt.Errorf("%s: %s", where, response.Status))
	}
	numbers := map[string]float64{}
	started := time.Now()
	if *taking > 0 {
		_, err = io.CopyN(io.Discard, from, *taking)
		check(err)
		numbers["MBps"] = float64(*taking) / 1e6 / time.Since(started).Seconds()
	}
	if *sending > 0 {
		piece := make([]byte, 1<<20)
		for left := *sending; left > 0; {
			n, err := conn.Write(piece[:min(left, int64(len(piece)))])
			check(err)
			left -= int64(n)
		}
		_, err = from.ReadByte()
		check(err)
		numbers["MBps"] = float64(*sending) / 1e6 / time.Since(started).Seconds()
	}
	var samples []float64
	for range *count {
		began := time.Now()
		_, err = conn.Write([]byte{'x'})
		check(err)
		_, err = from.ReadByte()
		check(err)
		samples = append(samples, float64(time.Since(began).Nanoseconds())/1e6)
	}
	for name, value := range quantiles(samples) {
		numbers[name] = value
	}
	report(numbers)
}

func dial(where *url.URL) net.Conn {
	if where.Scheme == "https" {
		config := tlsConfig("agent")
		config.Certificates = nil
		conn, err := tls.Dial("tcp", where.Host, config)
		check(err)
		return conn
	}
	conn, err := net.Dial("tcp", where.Host)
	check(err)
	return conn
}
