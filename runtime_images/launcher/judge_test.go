package main

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
)

func exited(code int) syscall.WaitStatus                { return syscall.WaitStatus(code << 8) }
func signalled(which syscall.Signal) syscall.WaitStatus { return syscall.WaitStatus(which) }

func TestJudgeStep(t *testing.T) {
	mapped := map[int]verdict{3: meanings["UnsupportedModel"], 4: meanings["Transient"], 65: meanings["BadInput"], 137: meanings["ToolchainFailure"]}
	for name, row := range map[string]struct {
		end    ending
		output *transcript
		code   int
		reason string
		says   string
		own    bool
	}{
		"success":                    {end: ending{status: exited(0)}, code: 0, reason: "Built"},
		"success, own report":        {end: ending{status: exited(0), ownReport: true}, code: 0, reason: "Built", own: true},
		"failure":                    {end: ending{status: exited(1), telling: "Boom"}, code: 70, reason: "ToolchainFailed", says: "ended with 1: Boom"},
		"mapped":                     {end: ending{status: exited(3)}, code: 64, reason: "UnsupportedModel"},
		"mapped, transient":          {end: ending{status: exited(4)}, code: 75, reason: "Retrying"},
		"mapped wins over ours":      {end: ending{status: exited(65)}, code: 64, reason: "SourceInvalid"},
		"own report wins":            {end: ending{status: exited(65), ownReport: true}, code: 65, reason: "ArtifactMismatch", own: true},
		"own report, foreign code":   {end: ending{status: exited(1), ownReport: true}, code: 70, reason: "ToolchainFailed"},
		"our code, no report":        {end: ending{status: exited(66)}, code: 70, reason: "ToolchainFailed", says: "ended with 66"},
		"crash":                      {end: ending{status: signalled(syscall.SIGSEGV)}, code: 70, reason: "ToolchainFailed", says: "segmentation fault"},
		"abort":                      {end: ending{status: exited(134)}, code: 70, reason: "ToolchainFailed", says: "signal 6"},
		"killed, mapped as 137":      {end: ending{status: signalled(syscall.SIGKILL)}, code: 70, reason: "ToolchainFailed"},
		"interrupted from outside":   {end: ending{status: signalled(syscall.SIGINT)}, code: 75, reason: "Retrying"},
		"terminated by somebody":     {end: ending{status: signalled(syscall.SIGTERM)}, code: 75, reason: "Retrying"},
		"wrapper of a terminated":    {end: ending{status: exited(143)}, code: 75, reason: "Retrying"},
		"asked to stop":              {end: ending{status: exited(1), interrupted: true}, code: 75, reason: "Retrying", says: "asked to stop"},
		"asked to stop, mapped":      {end: ending{status: exited(3), interrupted: true}, code: 75, reason: "Retrying"},
		"asked to stop, done":        {end: ending{status: exited(0), interrupted: true}, code: 0, reason: "Built"},
		"memory":                     {end: ending{status: signalled(syscall.SIGKILL), memory: "the kernel"}, code: 75, reason: "OutOfMemory", says: "resources.memory"},
		"memory of a helper":         {end: ending{status: exited(1), memory: "the kernel"}, code: 75, reason: "OutOfMemory"},
		"memory, but it did succeed": {end: ending{status: exited(0), memory: "the kernel"}, code: 0, reason: "Built"},
		"failure pattern":            {end: ending{status: exited(0)}, output: &transcript{failed: true, failedLine: "it is bad"}, code: 70, reason: "ToolchainFailed", says: "failure pattern: it is bad"},
		"failure pattern and report": {end: ending{status: exited(0), ownReport: true}, output: &transcript{failed: true}, code: 70, reason: "ToolchainFailed"},
	} {
		if row.output == nil {
			row.output = &transcript{}
		}
		s := newStep("step")
		s.exitCodes = mapped
		got := s.judge(row.end, row.output)
		if got.code != row.code || got.report.Reason != row.reason || got.keepOwn != row.own || !strings.Contains(got.report.Message, row.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	s := newStep("step")
	s.success = regexp.MustCompile("^ok$")
	if got := s.judge(ending{status: exited(0), telling: "hm"}, &transcript{}); got.code != 70 || !strings.Contains(got.report.Message, "success pattern ^ok$; last: hm") {
		t.Errorf("no success pattern: %+v", got)
	}
	if got := s.judge(ending{status: exited(0)}, &transcript{succeeded: true}); got.code != 0 {
		t.Errorf("success pattern: %+v", got)
	}
	if got := s.judge(ending{status: exited(0), interrupted: true}, &transcript{}); got.code != 75 {
		t.Errorf("interrupted before the pattern came: %+v", got)
	}
}

func TestJudgeEngine(t *testing.T) {
	notes := engineReport{Reason: "DriverMismatch", Message: "driver 1.3"}
	for name, row := range map[string]struct {
		end    ending
		notes  engineReport
		code   int
		reason string
		says   string
		own    bool
	}{
		"ends with 0":          {end: ending{status: exited(0)}, code: 70, reason: "EngineFailed", says: "ended with 0"},
		"crash":                {end: ending{status: exited(1), telling: "RuntimeError: x"}, notes: notes, code: 70, reason: "EngineFailed", says: "RuntimeError: x"},
		"segmentation fault":   {end: ending{status: signalled(syscall.SIGSEGV)}, code: 70, reason: "EngineFailed"},
		"killed":               {end: ending{status: signalled(syscall.SIGKILL)}, code: 70, reason: "EngineFailed"},
		"memory":               {end: ending{status: signalled(syscall.SIGKILL), memory: "the kernel"}, code: 75, reason: "OutOfMemory"},
		"67":                   {end: ending{status: exited(67)}, code: 67, reason: "DriverMismatch", says: "the engine ended with 67"},
		"67 with notes":        {end: ending{status: exited(67)}, notes: notes, code: 67, reason: "DriverMismatch", says: "driver 1.3"},
		"64":                   {end: ending{status: exited(64)}, code: 64, reason: "SourceInvalid"},
		"65":                   {end: ending{status: exited(65)}, code: 65, reason: "ArtifactMismatch"},
		"66 and own report":    {end: ending{status: exited(66), ownReport: true}, notes: notes, code: 66, reason: "DeviceMissing", own: true},
		"69":                   {end: ending{status: exited(69)}, code: 69, reason: "SourceUnreachable"},
		"70":                   {end: ending{status: exited(70)}, code: 70, reason: "EngineFailed"},
		"75":                   {end: ending{status: exited(75)}, code: 75, reason: "Retrying"},
		"68 is not ours":       {end: ending{status: exited(68)}, notes: notes, code: 70, reason: "EngineFailed"},
		"asked, 0":             {end: ending{status: exited(0), interrupted: true}, code: 0, reason: "Deleting"},
		"asked, by the signal": {end: ending{status: signalled(syscall.SIGTERM), interrupted: true}, code: 0, reason: "Deleting"},
		"asked, 143":           {end: ending{status: exited(143), interrupted: true}, code: 0, reason: "Deleting"},
		"asked, failed":        {end: ending{status: exited(1), interrupted: true}, code: 70, reason: "EngineFailed"},
		"asked, memory":        {end: ending{status: signalled(syscall.SIGKILL), interrupted: true, memory: "the kernel"}, code: 75, reason: "OutOfMemory"},
	} {
		got := judgeEngine(row.end, row.notes)
		if got.code != row.code || got.report.Reason != row.reason || got.keepOwn != row.own || !strings.Contains(got.report.Message, row.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
