package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// podRunner keeps the processes in step with the pods of the API server.
type podRunner struct {
	client    kubernetes.Interface
	node      string
	directory string

	mutex      sync.Mutex
	starts     *os.File
	containers map[string]*container // by namespace/pod/container
}

// container is one main process, its directory, its log and its standard input for attach.
type container struct {
	directory string
	log       *containerLog
	stdin     io.WriteCloser
	attached  *broadcast
	command   *exec.Cmd
	started   time.Time
	done      chan struct{} // closed when the process has ended; exitCode is set before
	exitCode  int
}

func containerKey(namespace, pod, name string) string { return namespace + "/" + pod + "/" + name }

func (p *podRunner) find(namespace, pod, name string) (*container, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	c := p.containers[containerKey(namespace, pod, name)]
	if c == nil {
		return nil, fmt.Errorf("container %s of pod %s/%s is not here", name, namespace, pod)
	}
	return c, nil
}

// recordStart appends one line for each command that was started, so that tests can count them.
func (p *podRunner) recordStart(kind, key string, command []string) {
	line, _ := json.Marshal(map[string]any{"kind": kind, "container": key, "command": command, "time": time.Now()})
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if _, err := p.starts.Write(append(line, '\n')); err != nil {
		log.Printf("recording a start: %v", err)
	}
}

func (p *podRunner) run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(p.client, 0)
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { p.sync(ctx, object.(*corev1.Pod)) },
		UpdateFunc: func(_, object any) { p.sync(ctx, object.(*corev1.Pod)) },
		DeleteFunc: func(object any) {
			if pod, ok := object.(*corev1.Pod); ok {
				p.kill(pod)
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

func (p *podRunner) sync(ctx context.Context, pod *corev1.Pod) {
	pods := p.client.CoreV1().Pods(pod.Namespace)
	switch {
	case len(pod.Spec.SchedulingGates) > 0:
	case pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil:
		binding := &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
			Target:     corev1.ObjectReference{Kind: "Node", Name: p.node},
		}
		if err := pods.Bind(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			log.Printf("binding %s/%s: %v", pod.Namespace, pod.Name, err)
		}
	case pod.Spec.NodeName != p.node:
	case pod.DeletionTimestamp != nil:
		p.kill(pod)
		zero := int64(0)
		options := metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(pod.UID))}
		if err := pods.Delete(ctx, pod.Name, options); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			log.Printf("removing %s/%s: %v", pod.Namespace, pod.Name, err)
		}
	case pod.Status.Phase == corev1.PodPending:
		p.start(ctx, pod)
	}
}

func (p *podRunner) start(ctx context.Context, pod *corev1.Pod) {
	for i := range pod.Spec.Containers {
		spec := &pod.Spec.Containers[i]
		key := containerKey(pod.Namespace, pod.Name, spec.Name)
		p.mutex.Lock()
		running := p.containers[key] != nil
		p.mutex.Unlock()
		if running {
			continue
		}
		c, err := p.startContainer(pod, spec)
		if err != nil {
			log.Printf("starting %s: %v", key, err)
			continue
		}
		p.mutex.Lock()
		p.containers[key] = c
		p.mutex.Unlock()
		go func() {
			<-c.done
			p.report(ctx, pod)
		}()
	}
	p.report(ctx, pod)
}

// startContainer runs the command of the container, or a process that waits for ever where it names none, in a
// directory of its own and as the leader of a process group of its own.
func (p *podRunner) startContainer(pod *corev1.Pod, spec *corev1.Container) (*container, error) {
	argv := append(append([]string{}, spec.Command...), spec.Args...)
	if len(argv) == 0 {
		argv = []string{"sleep", "infinity"}
	}
	directory := filepath.Join(p.directory, "containers", pod.Namespace, pod.Name, spec.Name)
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, err
	}
	output, err := newContainerLog(directory + ".log")
	if err != nil {
		return nil, err
	}
	c := &container{directory: directory, log: output, attached: &broadcast{}, done: make(chan struct{}), started: time.Now()}
	c.command = exec.Command(argv[0], argv[1:]...)
	c.command.Dir = directory
	c.command.Env = environment(directory, spec)
	c.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.command.Stdout = io.MultiWriter(output.stream("stdout"), c.attached)
	c.command.Stderr = io.MultiWriter(output.stream("stderr"), c.attached)
	if spec.Stdin {
		if c.stdin, err = c.command.StdinPipe(); err != nil {
			return nil, err
		}
	}
	p.recordStart("main", containerKey(pod.Namespace, pod.Name, spec.Name), argv)
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.exitCode = exitCode(c.command.Wait())
		output.finish()
		c.attached.finish()
		close(c.done)
	}()
	return c, nil
}

func environment(directory string, spec *corev1.Container) []string {
	result := []string{"HOME=" + directory, "PATH=" + os.Getenv("PATH"), "TERM=xterm", "LC_ALL=C.UTF-8"}
	for _, variable := range spec.Env {
		result = append(result, variable.Name+"="+variable.Value)
	}
	return result
}

// report writes the pod's status as its processes are now.
func (p *podRunner) report(ctx context.Context, pod *corev1.Pod) {
	status := corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "127.0.0.1", PodIP: "127.0.0.1", StartTime: &pod.CreationTimestamp}
	ended, failed := 0, false
	for i := range pod.Spec.Containers {
		spec := &pod.Spec.Containers[i]
		c, err := p.find(pod.Namespace, pod.Name, spec.Name)
		if err != nil {
			return
		}
		state := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, ContainerID: "process://" + fmt.Sprint(c.command.Process.Pid)}
		select {
		case <-c.done:
			ended++
			failed = failed || c.exitCode != 0
			state.State.Terminated = &corev1.ContainerStateTerminated{
				ExitCode: int32(c.exitCode), Reason: "Completed", StartedAt: metav1.NewTime(c.started), FinishedAt: metav1.Now(),
			}
		default:
			state.Ready = true
			state.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.started)}
		}
		status.ContainerStatuses = append(status.ContainerStatuses, state)
	}
	ready := corev1.ConditionTrue
	if ended > 0 {
		ready = corev1.ConditionFalse
	}
	if ended == len(pod.Spec.Containers) {
		status.Phase = corev1.PodSucceeded
		if failed {
			status.Phase = corev1.PodFailed
		}
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		value := ready
		if kind == corev1.PodInitialized || kind == corev1.PodScheduled {
			value = corev1.ConditionTrue
		}
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: value, LastTransitionTime: metav1.Now()})
	}
	updated := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, Status: status}
	patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"uid": updated.UID}, "status": updated.Status})
	_, err := p.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, "application/merge-patch+json", patch, metav1.PatchOptions{}, "status")
	if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		log.Printf("reporting %s/%s: %v", pod.Namespace, pod.Name, err)
	}
}

func (p *podRunner) kill(pod *corev1.Pod) {
	for i := range pod.Spec.Containers {
		key := containerKey(pod.Namespace, pod.Name, pod.Spec.Containers[i].Name)
		p.mutex.Lock()
		c := p.containers[key]
		delete(p.containers, key)
		p.mutex.Unlock()
		if c != nil {
			c.kill()
		}
	}
}

func (p *podRunner) killAll() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, c := range p.containers {
		c.kill()
	}
}

// kill ends the main process' group; what was exec'ed has groups of its own and ends with its streams.
func (c *container) kill() {
	_ = syscall.Kill(-c.command.Process.Pid, syscall.SIGKILL)
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := err.(*exec.ExitError); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return exit.ExitCode()
	}
	return 255
}
