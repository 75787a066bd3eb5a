// Command kubelet is the kubelet of one Node for the end-to-end tests: "containers" are local processes, images are
// ignored. It registers its Node, assigns to it every pod that has none, runs the pods' commands, reports their state, and serves the
// endpoints that the kube-apiserver uses: exec, attach, port-forward (upstream's own streaming server) and logs.
//
// It isolates nothing, mounts nothing, probes nothing and restarts nothing.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

type options struct {
	kubeconfig string
	node       string
	directory  string
	cert       string
	key        string
	clientCA   string
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the kube-apiserver, with full rights")
	flag.StringVar(&o.node, "node", "node-1", "name of the Node")
	flag.StringVar(&o.directory, "directory", "", "where containers have their directories and logs, and where starts.jsonl is written")
	flag.StringVar(&o.cert, "cert", "", "serving certificate, for 127.0.0.1")
	flag.StringVar(&o.key, "key", "", "its key")
	flag.StringVar(&o.clientCA, "client-ca", "", "CA of the kube-apiserver's client certificate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		log.Fatalf("kubelet: %v", err)
	}
}

func run(ctx context.Context, o options) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	starts, err := os.OpenFile(filepath.Join(o.directory, "starts.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer starts.Close()
	pods := &podRunner{client: client, node: o.node, directory: o.directory, starts: starts, containers: map[string]*container{}}
	handler, err := newHandler(pods)
	if err != nil {
		return err
	}
	listener, err := listen(o)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Fatalf("kubelet: serving: %v", err)
		}
	}()
	if err := registerNode(ctx, client, o.node, listener.Addr().(*net.TCPAddr).Port); err != nil {
		return fmt.Errorf("registering the node: %w", err)
	}
	log.Printf("ready: node %s listens on %s", o.node, listener.Addr())
	err = pods.run(ctx)
	_ = server.Close()
	pods.killAll()
	return err
}

// listen speaks HTTP/1.1 only, as every caller upgrades or reads a log, and asks for the kube-apiserver's certificate.
func listen(o options) (net.Listener, error) {
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(o.clientCA)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(pem)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return tls.NewListener(lingeringListener{listener.(*net.TCPListener)}, &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    clients,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}), nil
}

func registerNode(ctx context.Context, client kubernetes.Interface, name string, port int) error {
	nodes := client.CoreV1().Nodes()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}}
	if _, err := nodes.Create(ctx, node, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	node, err := nodes.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
	node.Status.NodeInfo.KubeletVersion = "v1.36.3"
	node.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}
