package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"sync"
	"time"
)

// containerLog is a container's output as container runtimes write it, one line "<time> <stream> F <text>" each, with
// a way to wait for more.
type containerLog struct {
	path string

	mutex    sync.Mutex
	file     *os.File
	grown    chan struct{} // closed and replaced whenever the file has grown or is finished
	finished bool
}

func newContainerLog(path string) (*containerLog, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return &containerLog{path: path, file: file, grown: make(chan struct{})}, nil
}

func (l *containerLog) stream(name string) io.Writer { return &lineWriter{log: l, stream: name} }

func (l *containerLog) append(data []byte) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	_, err := l.file.Write(data)
	close(l.grown)
	l.grown = make(chan struct{})
	return err
}

func (l *containerLog) finish() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.finished = true
	_ = l.file.Close()
	close(l.grown)
}

func (l *containerLog) state() (grown <-chan struct{}, finished bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.grown, l.finished
}

// lineWriter holds back an unfinished line; what the process wrote last without a newline is lost.
type lineWriter struct {
	log     *containerLog
	stream  string
	partial []byte
}

func (w *lineWriter) Write(data []byte) (int, error) {
	w.partial = append(w.partial, data...)
	end := bytes.LastIndexByte(w.partial, '\n') + 1
	if end == 0 {
		return len(data), nil
	}
	prefix := time.Now().UTC().Format(time.RFC3339Nano) + " " + w.stream + " F "
	var out []byte
	for line := range bytes.Lines(w.partial[:end]) {
		out = append(append(out, prefix...), line...)
	}
	w.partial = append([]byte{}, w.partial[end:]...)
	return len(data), w.log.append(out)
}

type logOptions struct {
	follow     bool
	timestamps bool
	tail       int64 // lines; negative: all
	limit      int64 // bytes; negative: all
	since      time.Time
}

// copyTo writes the chosen lines, each call of flush making them visible, until the end or, when following, until the
// container has ended or ctx is done.
func (l *containerLog) copyTo(ctx context.Context, w io.Writer, flush func(), o logOptions) error {
	file, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 1<<16)
	if o.tail >= 0 {
		if err := skipToTail(file, reader, o.tail); err != nil {
			return err
		}
	}
	out := &limitedWriter{w: w, left: o.limit}
	for {
		grown, finished := l.state()
		for {
			line, err := reader.ReadBytes('\n')
			if err == io.EOF {
				break // lines are appended whole, so nothing is held here
			}
			if err != nil {
				return err
			}
			if err := writeLine(out, line, o); err != nil {
				return err
			}
		}
		flush()
		if finished || !o.follow || out.left == 0 {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func writeLine(w io.Writer, line []byte, o logOptions) error {
	fields := bytes.SplitN(line, []byte(" "), 4)
	if !o.since.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, string(fields[0])); err == nil && at.Before(o.since) {
			return nil
		}
	}
	if o.timestamps {
		if _, err := w.Write(append(fields[0:1:1][0], ' ')); err != nil {
			return err
		}
	}
	_, err := w.Write(fields[3])
	return err
}

func skipToTail(file *os.File, reader *bufio.Reader, lines int64) error {
	total := int64(0)
	for {
		chunk, err := reader.ReadSlice('\n')
		if err == nil {
			total++
		} else if err == io.EOF {
			break
		} else if err != bufio.ErrBufferFull {
			return err
		}
		_ = chunk
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	reader.Reset(file)
	for skipped := int64(0); skipped < total-lines; skipped++ {
		if _, err := reader.ReadBytes('\n'); err != nil {
			return err
		}
	}
	return nil
}

// limitedWriter drops what goes beyond left bytes; a negative left is no limit.
type limitedWriter struct {
	w    io.Writer
	left int64
}

func (l *limitedWriter) Write(data []byte) (int, error) {
	if l.left < 0 {
		return l.w.Write(data)
	}
	kept := data[:min(int64(len(data)), l.left)]
	l.left -= int64(len(kept))
	if _, err := l.w.Write(kept); err != nil {
		return 0, err
	}
	return len(data), nil
}

// broadcast gives what is written to everybody who is attached; it does not keep anything for later.
type broadcast struct {
	mutex    sync.Mutex
	writers  map[*attachment]struct{}
	finished bool
}

type attachment struct {
	w    io.Writer
	done chan struct{} // closed when the writer failed or the container ended
	once sync.Once
}

func (a *attachment) end() { a.once.Do(func() { close(a.done) }) }

func (b *broadcast) attach(w io.Writer) *attachment {
	a := &attachment{w: w, done: make(chan struct{})}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.finished {
		a.end()
		return a
	}
	if b.writers == nil {
		b.writers = map[*attachment]struct{}{}
	}
	b.writers[a] = struct{}{}
	return a
}

func (b *broadcast) detach(a *attachment) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	delete(b.writers, a)
}

func (b *broadcast) Write(data []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for a := range b.writers {
		if _, err := a.w.Write(data); err != nil {
			delete(b.writers, a)
			a.end()
		}
	}
	return len(data), nil
}

func (b *broadcast) finish() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.finished = true
	for a := range b.writers {
		a.end()
	}
}
