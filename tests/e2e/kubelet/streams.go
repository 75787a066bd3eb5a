package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// newHandler serves the kubelet's endpoints. A streaming request is entered into upstream's streaming server and served
// there at once: kubelet and container runtime are one process here.
func newHandler(pods *podRunner) (http.Handler, error) {
	config := streaming.DefaultConfig
	config.BaseURL = &url.URL{Scheme: "https", Host: "kubelet", Path: "/"}
	server, err := streaming.NewServer(config, &processRuntime{pods: pods})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	stream := func(pattern string, enter func(*http.Request) (string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			location, err := enter(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			target, err := url.Parse(location)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			r.URL.Path = target.Path
			server.ServeHTTP(w, r)
		})
	}
	stream("/exec/{namespace}/{pod}/{container}", func(r *http.Request) (string, error) {
		key, q, err := pods.requested(r)
		if err != nil {
			return "", err
		}
		answer, err := server.GetExec(&runtimeapi.ExecRequest{
			ContainerId: key, Cmd: q["command"], Stdin: q.Has("input"), Stdout: q.Has("output"), Stderr: q.Has("error"), Tty: q.Has("tty"),
		})
		return answer.GetUrl(), err
	})
	stream("/attach/{namespace}/{pod}/{container}", func(r *http.Request) (string, error) {
		key, q, err := pods.requested(r)
		if err != nil {
			return "", err
		}
		answer, err := server.GetAttach(&runtimeapi.AttachRequest{
			ContainerId: key, Stdin: q.Has("input"), Stdout: q.Has("output"), Stderr: q.Has("error"), Tty: q.Has("tty"),
		})
		return answer.GetUrl(), err
	})
	stream("/portForward/{namespace}/{pod}", func(r *http.Request) (string, error) {
		request := &runtimeapi.PortForwardRequest{PodSandboxId: r.PathValue("namespace") + "/" + r.PathValue("pod")}
		for _, list := range r.URL.Query()["port"] { // named at once by WebSocket clients, per stream by SPDY clients
			for text := range strings.SplitSeq(list, ",") {
				port, err := strconv.ParseInt(text, 10, 32)
				if err != nil {
					return "", err
				}
				request.Port = append(request.Port, int32(port))
			}
		}
		answer, err := server.GetPortForward(request)
		return answer.GetUrl(), err
	})
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", pods.serveLogs)
	return mux, nil
}

func (p *podRunner) requested(r *http.Request) (string, url.Values, error) {
	namespace, pod, name := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	_, err := p.find(namespace, pod, name)
	return containerKey(namespace, pod, name), r.URL.Query(), err
}

func (p *podRunner) serveLogs(w http.ResponseWriter, r *http.Request) {
	c, err := p.find(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	q := r.URL.Query()
	number := func(name string) int64 {
		if value, err := strconv.ParseInt(q.Get(name), 10, 64); err == nil {
			return value
		}
		return -1
	}
	o := logOptions{
		follow: q.Get("follow") == "true", timestamps: q.Get("timestamps") == "true", tail: number("tailLines"), limit: number("limitBytes"),
	}
	if seconds := number("sinceSeconds"); seconds >= 0 {
		o.since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher).Flush
	flush()
	if err := c.log.copyTo(r.Context(), w, flush, o); err != nil && r.Context().Err() == nil {
		log.Printf("logs of %s: %v", r.URL.Path, err)
	}
}

// processRuntime is the container runtime below the streaming server.
type processRuntime struct{ pods *podRunner }

// Exec runs the command in the container's directory and ends with its exit code once all its output is delivered.
func (rt *processRuntime) Exec(
	_ context.Context, key string, argv []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize,
) error {
	parts := strings.SplitN(key, "/", 3)
	c, err := rt.pods.find(parts[0], parts[1], parts[2])
	if err != nil {
		return err
	}
	rt.pods.recordStart("exec", key, argv)
	command := exec.Command(argv[0], argv[1:]...) // what runs in a container outlives the connection, as with a real kubelet
	command.Dir = c.directory
	command.Env = []string{"HOME=" + c.directory, "PATH=" + os.Getenv("PATH"), "TERM=xterm", "LC_ALL=C.UTF-8"}
	if tty {
		err = runOnTerminal(command, in, out, resize)
	} else {
		err = runOnPipes(command, in, out, errs)
	}
	if _, exited := err.(*exec.ExitError); exited {
		code := exitCode(err)
		return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return err
}

// runOnPipes does not wait for the end of stdin: a caller may keep it open after the command has ended.
func runOnPipes(command *exec.Cmd, in io.Reader, out, errs io.WriteCloser) error {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if out != nil {
		command.Stdout = out
	}
	if errs != nil {
		command.Stderr = errs
	}
	if in == nil {
		return command.Run()
	}
	stdin, err := command.StdinPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(stdin, in)
		_ = stdin.Close()
	}()
	return command.Wait()
}

func runOnTerminal(command *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	terminal, err := pty.StartWithAttrs(command, nil, &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL})
	if err != nil {
		return err
	}
	defer terminal.Close()
	go func() {
		for size := range resize {
			_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
		}
	}()
	if in != nil {
		go func() { _, _ = io.Copy(terminal, in) }()
	}
	if out != nil {
		_, _ = io.Copy(out, terminal) // ends with EIO when the last process on the terminal has gone
	}
	return command.Wait()
}

// Attach connects to the main process until it ends or the caller goes away.
func (rt *processRuntime) Attach(
	ctx context.Context, key string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize,
) error {
	parts := strings.SplitN(key, "/", 3)
	c, err := rt.pods.find(parts[0], parts[1], parts[2])
	if err != nil {
		return err
	}
	if in != nil && c.stdin != nil {
		go func() {
			if _, err := io.Copy(c.stdin, in); err == nil {
				_ = c.stdin.Close() // as a container with stdinOnce
			}
		}()
	}
	if out == nil {
		out = errs
	}
	a := c.attached.attach(out)
	defer c.attached.detach(a)
	select {
	case <-a.done:
	case <-ctx.Done():
	}
	return nil
}

// PortForward splices the stream with a local port. The caller's end of sending is passed on by itself; the end of what
// the port sends ends the whole, as kubectl keeps its local connection until then.
func (rt *processRuntime) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	connection, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, connection)
	return err
}
