package main

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// originHandler answers /small (1 KiB), /big (random bytes; ?bytes=), /list (a gzipped list), /upload,
// /watch (and /tell) and /exec.
func originHandler() http.Handler {
	small := bytes.Repeat([]byte("x"), 1024)
	random := make([]byte, 1<<20)
	rand.Read(random)
	list := gzippedList()
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1024")
		w.Write(small)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		var size int64 = 1 << 30
		fmt.Sscan(r.URL.Query().Get("bytes"), &size)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for size > 0 {
			piece := random[:min(size, int64(len(random)))]
			if _, err := w.Write(piece); err != nil {
				return
			}
			size -= int64(len(piece))
		}
	})
	mux.HandleFunc("/list", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", fmt.Sprint(len(list)))
		w.Write(list)
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		received, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, received)
	})
	mux.HandleFunc("/watch", watch)
	mux.HandleFunc("/tell", tell)
	mux.HandleFunc("/exec", execHandler(random))
	return mux
}

const eventStart = "{\"type\":\"MODIFIED\",\"object\":{\"at\":"

// bell rings once for everybody who waits for it.
type bell struct {
	lock sync.Mutex
	ring chan struct{}
}

func (b *bell) waiting() chan struct{} {
	b.lock.Lock()
	defer b.lock.Unlock()
	if b.ring == nil {
		b.ring = make(chan struct{})
	}
	return b.ring
}

func (b *bell) strike() {
	close(b.waiting())
	b.lock.Lock()
	defer b.lock.Unlock()
	b.ring = nil
}

var events bell

// tell makes all watches that are open now send their events.
func tell(w http.ResponseWriter, r *http.Request) {
	events.strike()
}

// watch sends an event at once, and from when it is told to one every ?interval. An event says when it was sent. They
// begin at any time within the first interval, for watches have nothing to do with each other.
func watch(w http.ResponseWriter, r *http.Request) {
	told := events.waiting()
	w.Header().Set("Content-Type", "application/json")
	flusher := w.(http.Flusher)
	send := func() {
		fmt.Fprintf(w, "%s%d}}\n", eventStart, time.Now().UnixNano())
		flusher.Flush()
	}
	interval, err := time.ParseDuration(r.URL.Query().Get("interval"))
	if err != nil {
		interval = time.Second
	}
	send()
	select {
	case <-r.Context().Done():
		return
	case <-told:
	}
	timer := time.NewTimer(mathrand.N(interval))
	defer timer.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-timer.C:
			timer.Reset(interval)
			send()
		}
	}
}

// gzippedList is what a kube-apiserver answers for 5,000 pods, roughly.
func gzippedList() []byte {
	var text bytes.Buffer
	text.WriteString("{\"kind\":\"PodList\",\"items\":[")
	for i := range 5000 {
		fmt.Fprintf(&text, "{\"metadata\":{\"name\":\"pod-%d\",\"namespace\":\"default\",\"uid\":\"%x\"},\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"registry.example.com/app:%d\"}]},\"status\":{\"phase\":\"Running\",\"podIP\":\"10.0.%d.%d\"}},", i, i*7919, i%17, i/250, i%250)
	}
	text.WriteString("{}]}")
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	writer.Write(text.Bytes())
	writer.Close()
	return packed.Bytes()
}
