package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// step is a program that has to come to its end, and what it is judged by.
type step struct {
	// what it is called in messages.
	what      string
	name      string
	outputs   []string
	outputDir string
	success   *regexp.Regexp
	failure   *regexp.Regexp
	exitCodes map[int]verdict
	// failing is what a failure means that nothing else is known of.
	failing verdict
	// devices are so many that have to be there before the program starts.
	devices int
	// drivers are the versions of which these have to have one; empty for any.
	drivers   []string
	versions  map[string]string
	argv      []string
	environ   []string
	variables expander
}

func newStep(what string) step {
	return step{what: what, exitCodes: map[int]verdict{}, failing: meanings["ToolchainFailure"], versions: map[string]string{}}
}

// ownFlags are those of any command that runs a program to its end.
func (s *step) ownFlags(command string) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&s.name, "name", "", "")
	flags.Func("exit-code", "", s.addExitCode)
	return flags
}

// judgedFlags are those of the commands that are a step of a build.
func (s *step) judgedFlags(command string) *flag.FlagSet {
	flags := s.ownFlags(command)
	flags.Func("output", "", func(glob string) error { s.outputs = append(s.outputs, glob); return nil })
	flags.Func("success-pattern", "", pattern(&s.success))
	flags.Func("failure-pattern", "", pattern(&s.failure))
	flags.Func("failure-meaning", "", s.setFailing)
	flags.IntVar(&s.devices, "require-devices", 0, "")
	flags.Func("require-driver", "", func(version string) error { s.drivers = append(s.drivers, version); return nil })
	flags.Func("version", "", func(text string) error { return assign(s.versions, text) })
	return flags
}

// parse reads the command line, and expands variables in it and in the environment.
func (s *step) parse(flags *flag.FlagSet, args, environ []string) error {
	own, argv, err := splitArgs(args)
	if err != nil {
		return err
	}
	if err := flags.Parse(own); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag of %s; the program follows after --", flags.Arg(0), flags.Name())
	}
	if s.name == "" {
		return fmt.Errorf("%s needs --name", flags.Name())
	}
	if s.devices < 0 {
		return fmt.Errorf("--require-devices %d is negative", s.devices)
	}
	if len(s.drivers) > 0 && s.devices == 0 {
		return fmt.Errorf("--require-driver is about the devices of --require-devices, which is missing")
	}
	s.variables = newExpander(buildCatalogue, environ)
	if s.argv, err = s.variables.all("argument", argv); err != nil {
		return err
	}
	if s.outputs, err = s.variables.all("output", s.outputs); err != nil {
		return err
	}
	if err := checkGlobs(s.outputs); err != nil {
		return err
	}
	s.outputDir = s.variables.values["OUTPUT"]
	s.environ, err = s.variables.environment(environ)
	return err
}

func pattern(into **regexp.Regexp) func(string) error {
	return func(text string) (err error) {
		*into, err = regexp.Compile(text)
		return err
	}
}

const meaningWords = "BadInput, UnsupportedModel, ToolchainFailure, Transient"

func (s *step) addExitCode(text string) error {
	code, word, _ := strings.Cut(text, "=")
	number, err := strconv.Atoi(code)
	meaning, known := meanings[word]
	if err != nil || number < 1 || number > 255 || !known {
		return fmt.Errorf("want N=MEANING, N from 1 to 255 and MEANING one of %s", meaningWords)
	}
	s.exitCodes[number] = meaning
	return nil
}

func (s *step) setFailing(word string) error {
	meaning, known := meanings[word]
	if !known {
		return fmt.Errorf("want one of %s", meaningWords)
	}
	s.failing = meaning
	return nil
}

// assign takes NAME=VALUE; a name that comes twice is a mistake.
func assign(into map[string]string, text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found || name == "" {
		return fmt.Errorf("want NAME=VALUE")
	}
	if _, twice := into[name]; twice {
		return fmt.Errorf("%s is given twice", name)
	}
	into[name] = value
	return nil
}

// transcript watches for the step's patterns.
func (s *step) transcript() *transcript {
	return &transcript{success: s.success, failure: s.failure}
}

// environmentValue is what a child finds under name; empty if it is not set.
func (s *step) environmentValue(name string) string {
	value := ""
	for _, entry := range s.environ {
		if found, is := strings.CutPrefix(entry, name+"="); is {
			value = found
		}
	}
	return value
}

// attempt is a step whose program was started.
type attempt struct {
	step    *step
	begun   time.Time
	log     terminationLog
	output  *transcript
	signals <-chan os.Signal
	group   memoryGroup
	before  memoryCounters
	program *child
	facts   facts
}

// begin starts the program. The files given are its descriptors from 3 on.
func (s *step) begin(log terminationLog, output *transcript, files ...*os.File) (*attempt, error) {
	log.clear()
	a := &attempt{
		step: s, begun: time.Now(), log: log, output: output, signals: catchSignals(), group: findMemoryGroup("/"),
		facts: facts{Step: s.name},
	}
	a.before = a.group.read()
	var err error
	if a.program, err = startChild(s.argv, s.environ, output, files...); err != nil {
		return nil, fmt.Errorf("cannot start the %s: %w", s.what, err)
	}
	return a, nil
}

// checkDevices makes sure that the step has the devices that it needs, under a driver that its result is for; false
// where its program must not start.
func (s *step) checkDevices() (outcome, bool) {
	if s.devices == 0 {
		return outcome{}, true
	}
	if _, err := checkDevices(os.Getenv(deviceNodesName), os.Getenv(deviceIDsName), s.devices); err != nil {
		return verdict{codeDeviceMissing, reasonOf[codeDeviceMissing]}.because("%v", err), false
	}
	if err := checkDriver(os.Getenv(deviceDriverName), s.drivers); err != nil {
		return verdict{codeDriverMismatch, reasonOf[codeDriverMismatch]}.because("%v", err), false
	}
	return outcome{}, true
}

// run waits for the program's end.
func (a *attempt) run() ending {
	end, _ := a.runWith(nil, 0)
	return end
}

var errOutlived = errors.New("it would not end")

// runWith does work while the program runs, has the program end when the work is done, and waits for its end. The error
// is the work's: that of its context if the program ended before it was done, errOutlived if the program had to be
// killed after grace.
func (a *attempt) runWith(work func(context.Context) error, grace time.Duration) (ending, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done chan error
	if work != nil {
		done = make(chan error, 1)
		go func() { done <- work(ctx) }()
	}
	end := ending{}
	var result error
	var overdue <-chan time.Time
	for running := true; running; {
		select {
		case end.status = <-a.program.exited:
			running = false
		case which := <-a.signals:
			if endsProgram(which) {
				end.interrupted = true
				cancel()
			}
			a.program.send(which.(syscall.Signal))
		case result = <-done:
			done = nil
			if !end.interrupted { // it was asked already, by whoever asked us
				a.program.send(syscall.SIGTERM)
				overdue = time.After(grace)
			}
		case <-overdue:
			if result == nil {
				result = errOutlived
			}
			a.program.send(syscall.SIGKILL)
		}
	}
	if done != nil {
		cancel()
		result = <-done
	}
	a.program.finish()
	end.memory = a.group.killedSince(a.before, end.signal())
	end.ownReport = a.log.childReport()
	end.telling = a.output.telling()
	return end, result
}

// conclude completes the report.
func (a *attempt) conclude(result outcome) outcome {
	result.report.Retryable = isRetryable(result.code)
	result.report.Seconds = seconds(time.Since(a.begun))
	result.report.Versions = a.step.versions
	a.facts.LogTail = a.output.tail()
	result.report.Facts = a.facts
	return result
}

func endsProgram(which os.Signal) bool {
	return which == syscall.SIGTERM || which == syscall.SIGINT || which == syscall.SIGQUIT || which == syscall.SIGHUP
}

// judge decides what the end of a step means. What it said of itself and a mapped exit code are weaker than what is
// known to have ended the step from outside, because the tool would say the same then.
func (s *step) judge(end ending, output *transcript) outcome {
	code := end.code()
	mapped, isMapped := s.exitCodes[code]
	transient := meanings["Transient"]
	switch {
	case code == 0 && end.means == nil:
		return s.judgeSuccess(end, output)
	case end.memory != "":
		return outOfMemory.because("%s; raise resources.memory of the step", end.memory)
	case code != 0 && end.ownReport && isOurs(code):
		return outcome{code: code, keepOwn: true, report: report{Reason: reasonOf[code], Message: end.String()}}
	case end.interrupted:
		return transient.because("the %s was asked to stop and %s", s.what, end)
	case end.means != nil:
		return end.means.because("the %s %s", s.what, end)
	case isMapped:
		return mapped.because("the %s %s", s.what, end)
	case end.blameless():
		return transient.because("the %s %s", s.what, end)
	}
	return s.failing.because("the %s %s", s.what, end)
}

// judgeSuccess looks at what a step did that ended with 0: that alone proves nothing for many a tool.
func (s *step) judgeSuccess(end ending, output *transcript) outcome {
	problem := ""
	if output.failed {
		problem = "its log matches the failure pattern: " + output.failedLine
	} else if s.success != nil && !output.succeeded {
		problem = fmt.Sprintf("no line of its log matches the success pattern %s", s.success)
		if end.telling != "" {
			problem += "; last: " + end.telling
		}
	} else if err := checkOutputs(s.outputs, s.outputDir); err != nil {
		problem = err.Error()
	}
	switch {
	case problem == "":
		return outcome{keepOwn: end.ownReport, report: report{Reason: "Built", Message: fmt.Sprintf("the %s succeeded", s.what)}}
	case end.interrupted:
		return meanings["Transient"].because("the %s was asked to stop and ended with 0, but %s", s.what, problem)
	}
	return s.failing.because("the %s ended with 0, but %s", s.what, problem)
}
