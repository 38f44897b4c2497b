package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

const (
	// stopGrace is what an engine gets to put its devices in order when it is given up.
	stopGrace       = 5 * time.Second
	maxReadyTimeout = 7 * 24 * 3600.0
	maxDrainTimeout = 24 * 3600.0
)

// engine is an engine to run, as the command line describes it.
type engine struct {
	servedName   string
	port         int
	reportPort   int
	artifactDir  string
	artifactKey  string
	cacheFrom    string
	cacheDir     string
	devices      int
	readyTimeout time.Duration
	hangTimeout  time.Duration
	drainDelay   time.Duration
	drainTimeout time.Duration
	logfmt       bool
	argv         []string
	environ      []string
}

func parseEngine(args, environ []string) (engine, error) {
	e := engine{}
	own, argv, absent := splitArgs(args)
	if absent != nil {
		own = args
	}
	flags := flag.NewFlagSet("engine", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&e.servedName, "served-name", "", "")
	flags.IntVar(&e.port, "port", 8000, "")
	flags.IntVar(&e.reportPort, "report-port", 9009, "")
	flags.StringVar(&e.artifactDir, "artifact-dir", "", "")
	flags.StringVar(&e.artifactKey, "artifact-key", "", "")
	flags.StringVar(&e.cacheFrom, "cache-from", "", "")
	commandFile := flags.String("command-file", "", "")
	flags.IntVar(&e.devices, "require-devices", 0, "")
	timeout := flags.Float64("ready-timeout", 1800, "")
	hang := flags.Float64("hang-timeout", 600, "")
	delay := flags.Float64("drain-delay", 0, "")
	drain := flags.Float64("drain-timeout", 45, "")
	format := flags.String("log-format", "native", "")
	if err := flags.Parse(own); err != nil {
		return e, err
	}
	e.readyTimeout, e.hangTimeout = inSeconds(*timeout), inSeconds(*hang)
	e.drainDelay, e.drainTimeout = inSeconds(*delay), inSeconds(*drain)
	e.logfmt = *format == "logfmt"
	switch {
	case flags.NArg() > 0:
		return e, fmt.Errorf("%q is no flag of engine; the program follows after --", flags.Arg(0))
	case absent != nil && *commandFile == "":
		return e, absent
	case e.servedName == "":
		return e, fmt.Errorf("engine needs --served-name")
	case (e.artifactDir == "") != (e.artifactKey == ""):
		return e, fmt.Errorf("--artifact-dir and --artifact-key go together")
	case !isPort(e.port) || !isPort(e.reportPort) || e.port == e.reportPort:
		return e, fmt.Errorf("--port %d and --report-port %d have to be two ports from 1 to 65535", e.port, e.reportPort)
	case !e.logfmt && *format != "native":
		return e, fmt.Errorf("--log-format %q has to be native or logfmt", *format)
	case e.devices < 0:
		return e, fmt.Errorf("--require-devices %d is negative", e.devices)
	case e.readyTimeout <= 0 || *timeout > maxReadyTimeout:
		return e, fmt.Errorf("--ready-timeout %v has to be more than 0 and at most %.0f seconds", *timeout, maxReadyTimeout)
	case *hang < 0 || *hang > maxReadyTimeout:
		return e, fmt.Errorf("--hang-timeout %v has to be at most %.0f seconds; 0 is never", *hang, maxReadyTimeout)
	case *delay < 0 || *drain < 0 || *delay > maxDrainTimeout || *drain > maxDrainTimeout:
		return e, fmt.Errorf("--drain-delay %v and --drain-timeout %v have to be from 0 to %.0f seconds", *delay, *drain, maxDrainTimeout)
	}
	variables := newExpander(serveCatalogue, environ)
	if e.cacheDir = variables.values["CACHE_DIR"]; e.cacheFrom != "" && e.cacheDir == "" {
		return e, fmt.Errorf("--cache-from needs CACHE_DIR, where the engine looks for its cache; the operator sets it")
	}
	if *commandFile != "" {
		made, err := readCommand(*commandFile)
		if err != nil {
			return e, err
		}
		argv, environ = append(made.Argv, argv...), made.under(environ)
	}
	var err error
	if e.argv, err = variables.all("argument", argv); err != nil {
		return e, err
	}
	e.environ, err = variables.environment(environ)
	return e, err
}

func inSeconds(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }

func isPort(number int) bool { return number > 0 && number < 1<<16 }

// runEngine checks what the engine needs, runs it, and tells on the report port how it is.
func runEngine(args, environ []string, log terminationLog) outcome {
	e, err := parseEngine(args, environ)
	if err != nil {
		return refuse("%v", err)
	}
	log.clear()
	signals := catchSignals()
	prober := newProber(e.port, e.servedName)
	notes := newEngineNotes(os.Getenv("RMA_ENGINE_REPORT"))
	status := newStatus(prober, notes)
	status.starts = countStart(notes.path)
	// Before anything else, so that a probe gets a reason and not a refused connection.
	if err := status.serve(e.reportPort); err != nil {
		return refuse("cannot open the report port: %v", err)
	}
	output := &transcript{retell: e.logfmt}
	result, further := e.check(status)
	if further {
		result, further = e.restoreCache(status, signals)
	}
	if further {
		result = e.supervise(status, signals, output, log)
	}
	if !result.keepOwn {
		result.report.Retryable = isRetryable(result.code)
		result.report.Seconds = seconds(time.Since(status.begun))
		result.report.Versions = status.versions(notes.read())
		result.report.Facts = facts{LogTail: output.tail()}
	}
	return result
}

// check is what has to hold before the engine may touch artifact and devices; false where it does not.
func (e engine) check(status *status) (outcome, bool) {
	var found artifact
	var nodes []deviceNode
	var err error
	if e.artifactDir != "" {
		if found, err = readArtifact(e.artifactDir, e.artifactKey); err != nil {
			return verdict{codeArtifactMismatch, "ArtifactMismatch"}.because("%v", err), false
		}
	}
	if e.devices > 0 {
		if nodes, err = checkDevices(os.Getenv(deviceNodesName), os.Getenv(deviceIDsName), e.devices); err != nil {
			return verdict{codeDeviceMissing, "DeviceMissing"}.because("%v", err), false
		}
	}
	status.checked(found, observed(nodes))
	return outcome{}, true
}

// restoreCache gives the engine the cache that an earlier one left; false where the engine must not start.
func (e engine) restoreCache(status *status, signals <-chan os.Signal) (outcome, bool) {
	if e.cacheFrom == "" {
		return outcome{}, true
	}
	mismatch := verdict{codeArtifactMismatch, "ArtifactMismatch"}
	info, err := os.Stat(e.cacheFrom)
	full := false
	if err == nil && info.IsDir() {
		full, err = hasContent(e.cacheFrom)
	}
	if err != nil || !full {
		return mismatch.because("there is no cache in %s, from which the engine was to start", e.cacheFrom), false
	}
	status.explain("copying the cache")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	copied := make(chan error, 1)
	go func() {
		_, err := copyTree(ctx, e.cacheFrom, e.cacheDir)
		copied <- err
	}()
	for {
		select {
		case err := <-copied:
			if failure, failed := err.(failedCopy); failed {
				if failure.verdict().code == codeBadInput {
					return mismatch.because("the cache in %s cannot be used: %v", e.cacheFrom, err), false
				}
				return failure.verdict().because("cannot copy the cache to %s: %v", e.cacheDir, err), false
			}
			return outcome{}, true
		case which := <-signals:
			if endsProgram(which) {
				cancel()
				<-copied
				return outcome{report: report{Reason: "Deleting", Message: "asked to stop before the engine was started"}}, false
			}
		}
	}
}

// supervise runs the engine to its end.
func (e engine) supervise(status *status, signals <-chan os.Signal, output *transcript, log terminationLog) outcome {
	group := findMemoryGroup("/")
	before := group.read()
	program, err := startChild(e.argv, e.environ, output)
	if err != nil {
		return refuse("cannot start the engine: %v", err)
	}
	status.enter(starting, "waiting for the engine's server")
	probing, stopProbing := context.WithCancel(context.Background())
	defer stopProbing()
	tokens := make(chan struct{})
	go func() {
		answered := func() { status.enter(generating, "waiting for the first token") }
		if status.prober.untilToken(probing, answered, func(err error) { status.explain(err.Error()) }) == nil {
			status.tellVersion(status.prober.version(probing))
			close(tokens)
		}
	}()
	deadline := time.NewTimer(e.readyTimeout)
	defer deadline.Stop()
	hung := make(chan error, 1)
	var drained chan struct{}

	end := ending{}
	for running := true; running; {
		select {
		case end.status = <-program.exited:
			running = false
		case which := <-signals:
			if endsProgram(which) && !end.interrupted {
				end.interrupted = true
				wasReady := status.isReady()
				status.enter(draining, fmt.Sprintf("asked to stop by signal %d (%s)", int(which.(syscall.Signal)), which))
				stopProbing()
				deadline.Stop()
				if which == syscall.SIGTERM && wasReady {
					drained = make(chan struct{})
					go func() {
						e.letDrain(status)
						close(drained)
					}()
					continue
				}
			}
			if endsProgram(which) {
				drained = nil // who asks twice does not want to wait
			}
			program.send(which.(syscall.Signal))
		case <-drained:
			drained = nil
			program.send(syscall.SIGTERM)
		case <-tokens:
			tokens = nil
			if end.interrupted {
				continue
			}
			deadline.Stop()
			does := status.prober.asked().does
			status.enter(ready, "the engine "+does)
			info("ready after %v: the engine %s", time.Since(status.begun).Round(time.Millisecond), does)
			if e.hangTimeout > 0 {
				go func() {
					if err := status.untilHung(probing, e.hangTimeout); err != nil {
						hung <- err
					}
				}()
			}
		case err := <-hung:
			if end.interrupted {
				continue
			}
			return e.giveUp(program, status, err.Error())
		case <-deadline.C:
			if end.interrupted || tokens == nil {
				continue
			}
			message := fmt.Sprintf("the engine generated no token in %v; last: %s", e.readyTimeout, status.last())
			return e.giveUp(program, status, message)
		}
	}
	status.dead()
	status.enter(failed, "the engine ended")
	program.finish()
	end.memory = group.killedSince(before, end.signal())
	end.ownReport = log.childReport()
	end.telling = output.telling()
	return judgeEngine(end, status.notes.final())
}

// giveUp ends an engine that is of no use.
func (e engine) giveUp(program *child, status *status, message string) outcome {
	status.enter(failed, message)
	program.stop(stopGrace)
	status.dead()
	program.finish()
	return verdict{codeToolchainFailure, "EngineFailed"}.because("%s", message)
}

// letDrain waits before an engine that was ready is asked to stop: requests come until everybody has heard that it is
// not ready any more, and most engines break off at a signal what they have begun.
func (e engine) letDrain(status *status) {
	time.Sleep(e.drainDelay)
	if status.notes.read().Drains {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), e.drainTimeout)
	defer cancel()
	status.prober.untilIdle(ctx)
}

// judgeEngine decides what the end of an engine means: unless it was asked to, it should not have ended at all.
func judgeEngine(end ending, notes engineReport) outcome {
	code := end.code()
	switch {
	case end.interrupted && (code == 0 || end.blameless() && end.memory == ""):
		return outcome{report: report{Reason: "Deleting", Message: "the engine was asked to stop and did"}}
	case code != 0 && end.memory != "":
		return outOfMemory.because("%s; raise the memory of the engine", end.memory)
	case code != 0 && isOurs(code):
		if end.ownReport {
			return outcome{code: code, keepOwn: true, report: report{Reason: reasonOf[code], Message: end.String()}}
		}
		result := verdict{code, reasonOf[code]}.because("the engine %s", end)
		if code == codeToolchainFailure {
			result.report.Reason = "EngineFailed"
		}
		if notes.Reason != "" {
			result.report.Reason = notes.Reason
		}
		if notes.Message != "" {
			result.report.Message = notes.Message
		}
		return result
	}
	return verdict{codeToolchainFailure, "EngineFailed"}.because("the engine %s", end)
}
