package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// warmupCache is where below ${OUTPUT} the cache of a warm engine goes.
const warmupCache = "cache"

// warmup is an engine that fills its cache, as the command line describes it.
type warmup struct {
	step
	port         int
	sequence     int
	batch        int
	readyTimeout time.Duration
	stopTimeout  time.Duration
	cacheDir     string
}

func parseWarmup(args, environ []string) (warmup, error) {
	w := warmup{step: newStep("engine")}
	flags := w.judgedFlags("warmup")
	flags.IntVar(&w.port, "port", 8000, "")
	flags.IntVar(&w.sequence, "sequence", 0, "")
	flags.IntVar(&w.batch, "batch", 0, "")
	ready := flags.Float64("ready-timeout", 1800, "")
	stop := flags.Float64("stop-timeout", 120, "")
	if err := w.parse(flags, args, environ); err != nil {
		return w, err
	}
	given := map[string]bool{}
	flags.Visit(func(each *flag.Flag) { given[each.Name] = true })
	w.cacheDir = w.variables.values["CACHE_DIR"]
	w.readyTimeout = time.Duration(*ready * float64(time.Second))
	w.stopTimeout = time.Duration(*stop * float64(time.Second))
	switch {
	case !isPort(w.port):
		return w, fmt.Errorf("--port %d has to be from 1 to 65535", w.port)
	case given["sequence"] && w.sequence < 2:
		return w, fmt.Errorf("--sequence %d has to be at least 2: one token to read and one to write", w.sequence)
	case given["batch"] && w.batch < 1:
		return w, fmt.Errorf("--batch %d has to be at least 1", w.batch)
	case w.readyTimeout <= 0 || *ready > maxReadyTimeout:
		return w, fmt.Errorf("--ready-timeout %v has to be more than 0 and at most %.0f seconds", *ready, maxReadyTimeout)
	case w.stopTimeout <= 0 || *stop > maxReadyTimeout:
		return w, fmt.Errorf("--stop-timeout %v has to be more than 0 and at most %.0f seconds", *stop, maxReadyTimeout)
	case w.cacheDir == "" || w.outputDir == "":
		return w, errors.New("warmup needs CACHE_DIR, where the engine keeps its cache, and OUTPUT, where it goes; the operator sets both")
	}
	if kept := w.kept(); isWithin(w.cacheDir, kept) || isWithin(kept, w.cacheDir) {
		return w, fmt.Errorf("CACHE_DIR %s and %s, where the cache goes, have to be two directories", w.cacheDir, kept)
	}
	return w, nil
}

// kept is where the cache goes.
func (w *warmup) kept() string { return filepath.Join(w.outputDir, warmupCache) }

// runWarmup starts an engine, asks it for each bucket, stops it, and keeps its cache.
func runWarmup(args, environ []string, log terminationLog) outcome {
	w, err := parseWarmup(args, environ)
	if err != nil {
		return refuse("%v", err)
	}
	if missing, fine := w.checkDevices(); !fine {
		return missing
	}
	output := w.transcript()
	a, err := w.begin(log, output)
	if err != nil {
		return refuse("%v", err)
	}
	asking := warmer{
		prober: newProber(w.port, ""), sequence: w.sequence, batch: w.batch, timeout: w.readyTimeout, facts: &a.facts,
	}
	end, err := a.runWith(asking.warm, w.stopTimeout)
	size, err := w.settle(&end, err)
	if err != nil {
		return a.conclude(err.(failedCopy).verdict().because("cannot keep the engine's cache: %v", err))
	}
	result := w.judge(end, output)
	if result.code == codeOK {
		result.keepOwn = false // the engine does not know what became of its cache
		result.report.Message = fmt.Sprintf("the engine is warm; its cache has %d files of %d bytes", size.files, size.bytes)
	}
	return a.conclude(result)
}

// settle decides what the engine's end was, where more is known than how it ended, and keeps the cache if all went well.
func (w *warmup) settle(end *ending, warming error) (size transferred, err error) {
	fails := func(format string, args ...any) {
		end.how, end.means = fmt.Sprintf(format, args...), &w.failing
	}
	switch {
	case errors.Is(warming, errOutlived):
		fails("did not end within %v of being asked to; what it left may not be whole", w.stopTimeout)
	case errors.Is(warming, context.Canceled):
		// It ended before it was warm; with 0 that says nothing, and any other code says what a step's would.
		if end.code() == 0 {
			fails("ended with 0 before it was warm")
		}
	case warming != nil && end.telling != "":
		fails("%v; its log: %s", warming, end.telling)
	case warming != nil:
		fails("%v", warming)
	case end.code() != 0 && end.signal() != syscall.SIGTERM:
		how := end.String()
		end.how = "was warm and asked to stop, but " + how
	default:
		end.status = 0
		if size, err = keepCache(w.cacheDir, w.kept()); err == nil && size.files == 0 {
			fails("is warm, but left nothing in %s; has it an option or a variable that says where its cache goes?", w.cacheDir)
		}
	}
	return size, err
}

// keepCache moves the cache to where the result is. What a container before this one left there is replaced.
func keepCache(from, to string) (transferred, error) {
	if err := os.RemoveAll(to); err != nil {
		return transferred{}, failedCopy{err}
	}
	if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) {
		return transferred{}, nil
	}
	return moveTree(from, to)
}
