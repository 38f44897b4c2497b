package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Signals that the child gets as we get them. The rest is either ours (SIGCHLD, SIGPIPE, SIGURG) or for a terminal.
var forwarded = []os.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

const (
	prSetChildSubreaper = 36 // prctl(2)
	// What outlives the child may hold its output open this long before it is killed, and once more before we go.
	drainGrace = 2 * time.Second
)

// child is the vendor's program. It leads a process group, so that signals reach its helpers too.
type child struct {
	pid     int
	log     *transcript
	exited  <-chan syscall.WaitStatus
	drained sync.WaitGroup
	pipes   []*os.File
}

// catchSignals has to come before the child is started, or a signal in between would end us and orphan it.
func catchSignals() chan os.Signal {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded...)
	return signals
}

// startChild starts argv with environ; the files given are its descriptors from 3 on. Every child that the kernel gives
// us, ours or an orphan, is reaped from then on.
func startChild(argv, environ []string, log *transcript, further ...*os.File) (*child, error) {
	program, err := findProgram(argv[0], environ)
	if err != nil {
		return nil, err
	}
	// Orphans come to process 1 anyway; where that is somebody else, we ask for them.
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)

	c := &child{log: log}
	files := []uintptr{os.Stdin.Fd()}
	var ours []*os.File
	for range 2 {
		reader, writer, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer writer.Close()
		ours = append(ours, reader)
		files = append(files, writer.Fd())
	}
	for _, file := range further {
		files = append(files, file.Fd())
	}
	c.pid, err = syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Env: environ, Files: files, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		for _, reader := range ours {
			reader.Close()
		}
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	c.pipes = ours
	toOut, toErr := io.Writer(os.Stdout), io.Writer(os.Stderr)
	if log.retell {
		toOut, toErr = nil, nil
	}
	c.drained.Go(func() { tee(ours[0], toOut, &splitter{to: log}) })
	c.drained.Go(func() { tee(ours[1], toErr, &splitter{to: log, fromStderr: true}) })
	exited := make(chan syscall.WaitStatus, 1)
	c.exited = exited
	go reap(c.pid, exited)
	return c, nil
}

// findProgram looks along the PATH that the child will have.
func findProgram(name string, environ []string) (string, error) {
	if name == "" {
		return "", errors.New("the program's name is empty")
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := ""
	for _, entry := range environ {
		if value, found := strings.CutPrefix(entry, "PATH="); found {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		// The prefix keeps LookPath from searching again, and lets it say whether the file can be executed.
		if found, err := exec.LookPath(dir + "/" + name); err == nil || errors.Is(err, exec.ErrDot) {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s is not in PATH (%s)", name, path)
}

// tee copies a stream to ours as it comes, if there is one, and shows it to the transcript. A writer that fails is given
// up, the child's output is still taken: a full pipe would stop it.
func tee(from *os.File, to io.Writer, lines *splitter) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if to != nil {
				if _, failed := to.Write(buffer[:n]); failed != nil {
					to = nil
				}
			}
			lines.feed(buffer[:n])
		}
		if err != nil {
			break
		}
	}
	lines.end()
	from.Close()
}

// reap waits for every child until there is none, and hands on the status of ours.
func reap(pid int, exited chan<- syscall.WaitStatus) {
	for {
		var status syscall.WaitStatus
		reaped, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return // ECHILD: nothing of ours is left
		}
		if reaped == pid {
			exited <- status
		}
	}
}

// send signals the child's group, or the child alone if it went into a group of its own making.
func (c *child) send(which syscall.Signal) {
	if err := syscall.Kill(-c.pid, which); errors.Is(err, syscall.ESRCH) {
		_ = syscall.Kill(c.pid, which)
	}
}

// finish takes the rest of the output of a child that has ended, and kills what is left of its group.
func (c *child) finish() {
	drained := make(chan struct{})
	go func() {
		c.drained.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainGrace):
	}
	_ = syscall.Kill(-c.pid, syscall.SIGKILL)
	// A daemon in a session of its own may still hold the pipes; its output is no longer the child's.
	for _, pipe := range c.pipes {
		_ = pipe.SetReadDeadline(time.Now().Add(drainGrace))
	}
	<-drained
}

// stop asks the child to end, and makes it after a while.
func (c *child) stop(grace time.Duration) {
	c.send(syscall.SIGTERM)
	select {
	case <-c.exited:
		return
	case <-time.After(grace):
	}
	c.send(syscall.SIGKILL)
	<-c.exited
}

// ending is how the child ended, with what else is known about it.
type ending struct {
	status syscall.WaitStatus
	// interrupted: we were asked to stop before it ended.
	interrupted bool
	// memory is empty, or says that the kernel killed for memory.
	memory string
	// ownReport: the child left a report that the operator can read.
	ownReport bool
	// telling is the line of its log that says most.
	telling string
	// how is what the child did, where more is known than its exit code; means is what that comes to.
	how   string
	means *verdict
}

// code is the exit code, 128 + n for signal n, as a shell would have it.
func (e ending) code() int {
	if e.status.Signaled() {
		return 128 + int(e.status.Signal())
	}
	return e.status.ExitStatus()
}

// signal is the one that ended the child, or the program that it wrapped; 0 if none did.
func (e ending) signal() syscall.Signal {
	if code := e.code(); code > 128 && code < 160 {
		return syscall.Signal(code - 128)
	}
	return 0
}

// blameless tells that somebody else ended the child: nothing says that it would happen again.
func (e ending) blameless() bool {
	switch e.signal() {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGKILL:
		return true
	}
	return false
}

// String says how it ended, and why as far as it told.
func (e ending) String() string {
	if e.how != "" {
		return e.how
	}
	how := fmt.Sprintf("ended with %d", e.code())
	if which := e.signal(); which != 0 {
		how = fmt.Sprintf("was ended by signal %d (%s)", int(which), which)
	}
	if e.telling != "" {
		how += ": " + e.telling
	}
	return how
}
