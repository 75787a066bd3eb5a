// Command informer keeps pods and configmaps of all namespaces in client-go informers, as a controller does, and says what
// they hold and what they cost in requests. WatchList and HTTP/2 are on, as they are by default.
//
// It prints one JSON line {"event":"synced"} when the first lists are complete, a report on SIGUSR1, and a last report
// on SIGTERM, after which it ends.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// requests counts what the reflectors ask of the server.
type requests struct {
	next http.RoundTripper

	mutex sync.Mutex
	seen  map[string]*counts // by the last segment of the path
}

// counts is what was asked for one resource. Only what was answered with success counts as a list or a watch.
type counts struct {
	Lists      int            `json:"lists"`       // GET of a collection
	WatchLists int            `json:"watch_lists"` // full lists streamed by a watch
	Watches    int            `json:"watches"`     // watches from a resource version
	Answers    map[string]int `json:"answers"`     // status codes, protocols and transport errors, of all requests
}

func (r *requests) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := r.next.RoundTrip(request)
	r.mutex.Lock()
	defer r.mutex.Unlock()
	c := r.at(request.URL.Path)
	if err != nil {
		c.Answers["error"]++
		log.Printf("%s: %v", request.URL.RequestURI(), err)
		return nil, err
	}
	c.Answers[fmt.Sprint(response.StatusCode)]++
	c.Answers[response.Proto]++
	log.Printf("%s: %s", request.URL.RequestURI(), response.Status)
	response.Body = &loggedBody{ReadCloser: response.Body, uri: request.URL.RequestURI()}
	query := request.URL.Query()
	switch {
	case response.StatusCode >= 300:
	case query.Get("watch") != "true" && query.Get("watch") != "1":
		c.Lists++
	case query.Get("sendInitialEvents") == "true":
		c.WatchLists++
	default:
		c.Watches++
	}
	return response, nil
}

func (r *requests) at(path string) *counts {
	name := path[lastSlash(path)+1:]
	if r.seen[name] == nil {
		r.seen[name] = &counts{Answers: map[string]int{}}
	}
	return r.seen[name]
}

// loggedBody says how each response ended: whether a watch ended cleanly or was cut is what the tests want to know.
type loggedBody struct {
	io.ReadCloser
	uri  string
	said bool
}

func (b *loggedBody) Read(data []byte) (int, error) {
	n, err := b.ReadCloser.Read(data)
	if err != nil && !b.said {
		b.said = true
		log.Printf("%s: body ended: %v", b.uri, err)
	}
	return n, err
}

func lastSlash(path string) int {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return i
		}
	}
	return -1
}

type report struct {
	Event  string                       `json:"event"`
	Counts map[string]*counts           `json:"counts"`
	Events map[string]map[string]int    `json:"events"` // by resource: added, updated, deleted
	Store  map[string]map[string]string `json:"store"`  // by resource: namespace/name to resource version
}

// watched is one informer with a count of what it told its handler.
type watched struct {
	informer cache.SharedIndexInformer
	mutex    sync.Mutex
	events   map[string]int
}

func (w *watched) count(kind string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.events[kind]++
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.Parse()
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	if err := run(*kubeconfig); err != nil {
		log.Fatalf("informer: %v", err)
	}
}

func run(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	traffic := &requests{seen: map[string]*counts{}}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		traffic.next = next
		return traffic
	})
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	all := map[string]*watched{
		"pods":       {informer: factory.Core().V1().Pods().Informer(), events: map[string]int{}},
		"configmaps": {informer: factory.Core().V1().ConfigMaps().Informer(), events: map[string]int{}},
	}
	for _, w := range all {
		if _, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.count("added") },
			UpdateFunc: func(any, any) { w.count("updated") },
			DeleteFunc: func(any) { w.count("deleted") },
		}); err != nil {
			return err
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM, os.Interrupt)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	factory.Start(ctx.Done())
	go func() {
		factory.WaitForCacheSync(ctx.Done())
		if ctx.Err() == nil {
			print(traffic.report("synced", all))
		}
	}()
	for received := range signals {
		if received == syscall.SIGUSR1 {
			print(traffic.report("report", all))
			continue
		}
		break
	}
	print(traffic.report("end", all))
	cancel()
	done := make(chan struct{})
	go func() { factory.Shutdown(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
	}
	return nil
}

func (r *requests) report(event string, all map[string]*watched) report {
	result := report{Event: event, Events: map[string]map[string]int{}, Store: map[string]map[string]string{}, Counts: map[string]*counts{}}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for name, c := range r.seen {
		copied := *c
		copied.Answers = map[string]int{}
		for answer, n := range c.Answers {
			copied.Answers[answer] = n
		}
		result.Counts[name] = &copied
	}
	for name, w := range all {
		w.mutex.Lock()
		result.Events[name] = map[string]int{"added": w.events["added"], "updated": w.events["updated"], "deleted": w.events["deleted"]}
		w.mutex.Unlock()
		result.Store[name] = map[string]string{}
		for _, object := range w.informer.GetStore().List() {
			accessor, err := meta.Accessor(object)
			if err != nil {
				continue
			}
			result.Store[name][accessor.GetNamespace()+"/"+accessor.GetName()] = accessor.GetResourceVersion()
		}
	}
	return result
}

var printing sync.Mutex

func print(r report) {
	line, err := json.Marshal(r)
	if err != nil {
		log.Fatal(err)
	}
	printing.Lock()
	defer printing.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n'))
}
