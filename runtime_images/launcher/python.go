package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"time"
)

// runner is the program that the image's Python gets.
//
//go:embed runner.py
var runner string

const (
	pythonVariable = "RMA_PYTHON"
	defaultPython  = "python3"
	// resultDescriptor is where the runner tells how the call ended.
	resultDescriptor = 3
	maxResultBytes   = 256 << 10
)

// callable is module:function; either may be dotted.
var callable = regexp.MustCompile(`^[\pL_][\pL\pN_]*(\.[\pL_][\pL\pN_]*)*:[\pL_][\pL\pN_]*(\.[\pL_][\pL\pN_]*)*$`)

// pythonBuild is what the function gets, as attributes. Sizes that are not compiled in are null.
type pythonBuild struct {
	ModelDir    string            `json:"model_dir"`
	Output      string            `json:"output"`
	Work        string            `json:"work"`
	CacheDir    string            `json:"cache_dir"`
	Target      string            `json:"target"`
	DType       string            `json:"dtype"`
	TP          *int              `json:"tp"`
	PP          *int              `json:"pp"`
	MaxSeq      *int              `json:"max_seq"`
	MaxBatch    *int              `json:"max_batch"`
	DeviceCount *int              `json:"device_count"`
	Inputs      map[string]string `json:"inputs"`
	Flags       map[string]string `json:"flags"`
}

func newPythonBuild(variables expander, options map[string]string) (pythonBuild, error) {
	values := variables.values
	build := pythonBuild{
		ModelDir: values["MODEL_DIR"], Output: values["OUTPUT"], Work: values["WORK"], CacheDir: values["CACHE_DIR"],
		Target: values["TARGET"], DType: values["DTYPE"], Inputs: map[string]string{}, Flags: options,
	}
	for name, into := range map[string]**int{
		"TP": &build.TP, "PP": &build.PP, "MAX_SEQ": &build.MaxSeq, "MAX_BATCH": &build.MaxBatch,
		"DEVICE_COUNT": &build.DeviceCount,
	} {
		if values[name] == "" {
			continue
		}
		number, err := strconv.Atoi(values[name])
		if err != nil {
			return build, fmt.Errorf("%s is %q and no number", name, values[name])
		}
		*into = &number
	}
	for name, value := range values {
		if input, is := variables.catalogue.input(name); is {
			build.Inputs[input] = value
		}
	}
	return build, nil
}

// pythonResult is what the runner tells.
type pythonResult struct {
	Versions    map[string]string `json:"versions"`
	Refused     string            `json:"refused"`
	Raised      string            `json:"raised"`
	Code        int               `json:"code"`
	Unsupported bool              `json:"unsupported"`
	Memory      bool              `json:"memory"`
	// Left: by SystemExit, with the exit code of a program.
	Left bool `json:"left"`
}

// means is what the exception comes to; nil if it is one like any other.
func (r pythonResult) means() *verdict {
	unsupported := meanings["UnsupportedModel"]
	reason, ours := reasonOf[r.Code]
	for _, special := range []struct {
		is bool
		verdict
	}{{r.Unsupported, unsupported}, {r.Memory, outOfMemory}} {
		if special.is && (!ours || r.Code == special.code) {
			return &special.verdict
		}
	}
	if ours {
		return &verdict{r.Code, reason}
	}
	return nil
}

// runPython calls a function of a package in the image.
func runPython(args, environ []string, log terminationLog) outcome {
	s := newStep("step")
	flags := s.judgedFlags("python")
	options := map[string]string{}
	flags.Func("flag", "", func(text string) error { return assign(options, text) })
	if err := s.parse(flags, args, environ); err != nil {
		return refuse("%v", err)
	}
	if missing, fine := s.checkDevices(); !fine {
		return missing
	}
	call := s.argv[0]
	if !callable.MatchString(call) {
		return refuse("%q is no function of a Python package; it should be MODULE:FUNCTION", call)
	}
	build, err := newPythonBuild(s.variables, options)
	if err != nil {
		return refuse("%v", err)
	}
	program := s.environmentValue(pythonVariable)
	if program == "" {
		program = defaultPython
	}
	request := marshal(map[string]any{"call": call, "build": build, "result": resultDescriptor})
	// A crash of native code shows where it was, and what was printed before it is not lost.
	s.argv = append([]string{program, "-u", "-X", "faulthandler", "-c", runner, string(request)}, s.argv[1:]...)

	reader, writer, err := os.Pipe()
	if err != nil {
		return verdict{codeTransient, "Retrying"}.because("cannot make a pipe: %v", err)
	}
	defer reader.Close()
	output := s.transcript()
	a, err := s.begin(log, output, writer)
	writer.Close()
	if err != nil {
		return refuse("%v; the image needs %s, or %s in the step's env names another", err, defaultPython, pythonVariable)
	}
	told := make(chan []byte, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(reader, maxResultBytes)).ReadBytes('\n')
		told <- line
	}()
	end := a.run()
	// What the function left behind may hold the pipe open.
	_ = reader.SetReadDeadline(time.Now().Add(drainGrace))
	end.interpret(<-told, &s)
	return a.conclude(s.judge(end, output))
}

// interpret takes what the runner told, empty if it did not get to it.
func (e *ending) interpret(line []byte, s *step) {
	var result pythonResult
	err := json.Unmarshal(line, &result)
	if len(line) == 0 {
		err = errors.New("it told nothing")
	}
	switch {
	case err != nil:
		if e.code() == 0 { // os._exit, or no Python at all
			e.how, e.means = "ended with 0 without having returned from the function", &s.failing
		}
	case result.Left:
	case result.Refused != "":
		e.how, e.means = "cannot be called: "+result.Refused, &verdict{codeBadInput, "InvalidSpec"}
	case result.Raised != "":
		e.how, e.means = "raised "+result.Raised, result.means()
		if result.Memory {
			e.how += "; raise resources.memory of the step"
		}
		if e.means == nil && e.code() == 0 { // by os._exit in a handler of the function's
			e.means = &s.failing
		}
	default:
		for name, version := range result.Versions {
			s.versions[name] = version
		}
		e.ownReport = e.ownReport && len(result.Versions) == 0
	}
}
