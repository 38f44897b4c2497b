package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// keeper runs a registry (CNCF distribution) as its child. From time to time it has the registry collect its garbage:
// meanwhile a read-only one serves, because what is pushed during a collection may be taken for garbage.
type keeper struct {
	program  string
	config   string
	readOnly string
	first    time.Duration
	every    time.Duration
	signals  chan os.Signal
	environ  []string
}

func keepRegistry(args, environ []string, _ terminationLog) outcome {
	k, err := parseKeeper(args, environ)
	if err != nil {
		return refuse("%v", err)
	}
	return k.run()
}

func parseKeeper(args, environ []string) (*keeper, error) {
	k := &keeper{environ: environ}
	own, argv, err := splitArgs(args)
	if err != nil {
		return nil, err
	}
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&k.config, "config", "", "")
	flags.StringVar(&k.readOnly, "read-only-config", "", "")
	flags.DurationVar(&k.first, "first", 10*time.Minute, "")
	flags.DurationVar(&k.every, "every", 24*time.Hour, "")
	if err := flags.Parse(own); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 || len(argv) != 1 {
		return nil, errors.New("registry takes flags, and after -- the registry's program and nothing else")
	}
	for _, file := range []string{k.config, k.readOnly} {
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("registry needs --config and --read-only-config: %v", err)
		}
	}
	if k.first <= 0 || k.every <= 0 {
		return nil, errors.New("--first and --every have to be longer than nothing, such as 10m and 24h")
	}
	k.program, err = findProgram(argv[0], environ)
	return k, err
}

// run goes on until it is asked to end, or a registry ends by itself: who restarts containers sees to that.
func (k *keeper) run() outcome {
	k.signals = catchSignals()
	for wait := k.first; ; wait = k.every {
		end := k.serve(k.config, func(ended <-chan error) (bool, error) {
			return k.waitFor(ended, time.After(wait))
		})
		if end == nil {
			started := time.Now()
			end = k.serve(k.readOnly, k.collect)
			info("collected garbage in %.1f s, read-only meanwhile", time.Since(started).Seconds())
		}
		if end != nil {
			return *end
		}
	}
}

// serve has a registry run with a configuration while `during` goes on, which says whether to go on afterwards.
func (k *keeper) serve(config string, during func(ended <-chan error) (bool, error)) *outcome {
	registry := k.command("serve", config)
	if err := registry.Start(); err != nil {
		failed := refuse("cannot start the registry: %v", err)
		return &failed
	}
	ended := make(chan error, 1)
	go func() { ended <- registry.Wait() }()
	goOn, err := during(ended)
	if err != nil {
		return k.failed(err)
	}
	_ = registry.Process.Signal(syscall.SIGTERM)
	<-ended
	if goOn {
		return nil
	}
	return &outcome{report: report{Reason: "Ready", Message: "the registry was asked to end"}}
}

var errEnded = errors.New("the registry ended by itself")

// waitFor returns true when the time is over, and false when we were asked to end.
func (k *keeper) waitFor(ended <-chan error, over <-chan time.Time) (bool, error) {
	for {
		select {
		case err := <-ended:
			return false, fmt.Errorf("%w: %v", errEnded, err)
		case <-over:
			return true, nil
		case which := <-k.signals:
			if endsProgram(which) {
				return false, nil
			}
		}
	}
}

// collect has the garbage collected. That it fails is said, and tried again the next time: the registry serves on.
func (k *keeper) collect(ended <-chan error) (bool, error) {
	collector := k.command("garbage-collect", "--delete-untagged", k.config)
	if err := collector.Start(); err != nil {
		warn("cannot collect garbage: %v", err)
		return true, nil
	}
	done := make(chan error, 1)
	go func() { done <- collector.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				warn("collecting garbage failed: %v", err)
			}
			return true, nil
		case err := <-ended:
			_ = collector.Process.Kill()
			<-done
			return false, fmt.Errorf("%w: %v", errEnded, err)
		case which := <-k.signals:
			if endsProgram(which) {
				// It removes what nothing names, one after the other: to end in between does no harm.
				_ = collector.Process.Signal(syscall.SIGTERM)
				<-done
				return false, nil
			}
		}
	}
}

func (k *keeper) failed(err error) *outcome {
	return &outcome{code: codeTransient, report: report{Reason: "Retrying", Message: err.Error()}}
}

func (k *keeper) command(args ...string) *exec.Cmd {
	command := exec.Command(k.program, args...)
	command.Env = k.environ
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	// A terminal's or a kubelet's signal is ours to pass on.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return command
}
