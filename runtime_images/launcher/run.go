package main

import (
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

// step is one step of a build, as the command line describes it.
type step struct {
	name      string
	outputs   []string
	outputDir string
	success   *regexp.Regexp
	failure   *regexp.Regexp
	exitCodes map[int]verdict
	versions  map[string]string
	argv      []string
	environ   []string
}

func parseStep(args, environ []string) (step, error) {
	s := step{exitCodes: map[int]verdict{}, versions: map[string]string{}}
	own, argv, err := splitArgs(args)
	if err != nil {
		return s, err
	}
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&s.name, "name", "", "")
	flags.Func("output", "", func(glob string) error { s.outputs = append(s.outputs, glob); return nil })
	flags.Func("success-pattern", "", pattern(&s.success))
	flags.Func("failure-pattern", "", pattern(&s.failure))
	flags.Func("exit-code", "", s.addExitCode)
	flags.Func("version", "", s.addVersion)
	if err := flags.Parse(own); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("%q is no flag of run; the program follows after --", flags.Arg(0))
	}
	if s.name == "" {
		return s, fmt.Errorf("run needs --name")
	}

	variables := newExpander(buildVariables, environ)
	if s.argv, err = variables.all("argument", argv); err != nil {
		return s, err
	}
	if s.outputs, err = variables.all("output", s.outputs); err != nil {
		return s, err
	}
	if err := checkGlobs(s.outputs); err != nil {
		return s, err
	}
	s.environ, err = variables.environment(environ)
	s.outputDir = variables.values["OUTPUT"]
	return s, err
}

func pattern(into **regexp.Regexp) func(string) error {
	return func(text string) (err error) {
		*into, err = regexp.Compile(text)
		return err
	}
}

func (s *step) addExitCode(text string) error {
	code, word, _ := strings.Cut(text, "=")
	number, err := strconv.Atoi(code)
	meaning, known := meanings[word]
	if err != nil || number < 1 || number > 255 || !known {
		return fmt.Errorf("want N=MEANING, N from 1 to 255 and MEANING one of BadInput, UnsupportedModel, ToolchainFailure, Transient")
	}
	s.exitCodes[number] = meaning
	return nil
}

func (s *step) addVersion(text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found || name == "" {
		return fmt.Errorf("want NAME=VALUE")
	}
	s.versions[name] = value
	return nil
}

// runStep runs a build step to its end.
func runStep(args, environ []string, log terminationLog) outcome {
	started := time.Now()
	s, err := parseStep(args, environ)
	if err != nil {
		return refuse("%v", err)
	}
	log.clear()
	signals := catchSignals()
	group := findMemoryGroup("/")
	before := group.read()
	output := &transcript{success: s.success, failure: s.failure}
	program, err := startChild(s.argv, s.environ, output)
	if err != nil {
		return refuse("cannot start the step: %v", err)
	}

	end := ending{}
	for running := true; running; {
		select {
		case end.status = <-program.exited:
			running = false
		case which := <-signals:
			end.interrupted = end.interrupted || endsProgram(which)
			program.send(which.(syscall.Signal))
		}
	}
	program.finish()
	end.memory = group.killedSince(before, end.signal())
	end.ownReport = log.childReport()
	end.telling = output.telling()
	result := s.judge(end, output)
	result.report.Retryable = isRetryable(result.code)
	result.report.Seconds = seconds(time.Since(started))
	result.report.Versions = s.versions
	result.report.Facts = facts{Step: s.name, LogTail: output.tail()}
	return result
}

func endsProgram(which os.Signal) bool {
	return which == syscall.SIGTERM || which == syscall.SIGINT || which == syscall.SIGQUIT || which == syscall.SIGHUP
}

// judge decides what the end of a step means. A mapped exit code is weaker than what is known to have ended the step
// from outside, because the tool would give the same code then.
func (s *step) judge(end ending, output *transcript) outcome {
	code := end.code()
	mapped, isMapped := s.exitCodes[code]
	transient := verdict{codeTransient, "Retrying"}
	toolchain := verdict{codeToolchainFailure, "ToolchainFailed"}
	switch {
	case code == 0:
		return s.judgeSuccess(end, output)
	case end.memory != "":
		return verdict{codeTransient, "OutOfMemory"}.because("%s; raise resources.memory of the step", end.memory)
	case end.ownReport && isOurs(code):
		return outcome{code: code, keepOwn: true, report: report{Reason: reasonOf[code], Message: end.String()}}
	case end.interrupted:
		return transient.because("the step was asked to stop and %s", end)
	case isMapped:
		return mapped.because("the step %s", end)
	case end.blameless():
		return transient.because("the step %s", end)
	}
	return toolchain.because("the step %s", end)
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
		return outcome{keepOwn: end.ownReport, report: report{Reason: "Built", Message: "the step succeeded"}}
	case end.interrupted:
		return verdict{codeTransient, "Retrying"}.because("the step was asked to stop and ended with 0, but %s", problem)
	}
	return verdict{codeToolchainFailure, "ToolchainFailed"}.because("the step ended with 0, but %s", problem)
}
