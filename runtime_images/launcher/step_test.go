package main

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
)

func TestFailureMeaning(t *testing.T) {
	s := newStep("check")
	s.exitCodes[3] = meanings["ToolchainFailure"]
	if err := s.setFailing("UnsupportedModel"); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		end    ending
		failed bool
		code   int
		reason string
	}{
		"fails":           {end: ending{status: exited(1)}, code: 64, reason: "UnsupportedModel"},
		"crashes":         {end: ending{status: signalled(syscall.SIGSEGV)}, code: 64, reason: "UnsupportedModel"},
		"its log says so": {end: ending{status: exited(0)}, failed: true, code: 64, reason: "UnsupportedModel"},
		"mapped":          {end: ending{status: exited(3)}, code: 70, reason: "ToolchainFailed"},
		"memory":          {end: ending{status: exited(1), memory: "m"}, code: 75, reason: "OutOfMemory"},
		"terminated":      {end: ending{status: signalled(syscall.SIGTERM)}, code: 75, reason: "Retrying"},
		"succeeds":        {end: ending{status: exited(0)}, code: 0, reason: "Built"},
	} {
		if got := s.judge(row.end, &transcript{failed: row.failed}); got.code != row.code || got.report.Reason != row.reason {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestSettleWarmup(t *testing.T) {
	refused := errors.New("cannot be warmed up for batch=2: no")
	for name, row := range map[string]struct {
		end     ending
		warming error
		code    int
		reason  string
		says    string
	}{
		"ended early with 0":      {ending{status: exited(0)}, context.Canceled, 70, "ToolchainFailed", "ended with 0 before it was warm"},
		"ended early":             {ending{status: exited(1), telling: "boom"}, context.Canceled, 70, "ToolchainFailed", "ended with 1: boom"},
		"ended early, mapped":     {ending{status: exited(4)}, context.Canceled, 75, "Retrying", "ended with 4"},
		"ended early, own report": {ending{status: exited(67), ownReport: true}, context.Canceled, 67, "DriverMismatch", ""},
		"ended early, no report":  {ending{status: exited(67)}, context.Canceled, 70, "ToolchainFailed", "ended with 67"},
		"asked to stop":           {ending{status: exited(0), interrupted: true}, context.Canceled, 75, "Retrying", "asked to stop"},
		"refused":                 {ending{status: exited(0)}, refused, 70, "ToolchainFailed", "batch=2: no"},
		"refused, own report":     {ending{status: exited(0), ownReport: true, telling: "KeyError"}, refused, 70, "ToolchainFailed", "batch=2: no; its log: KeyError"},
		"refused for memory":      {ending{status: signalled(syscall.SIGTERM), memory: "the kernel"}, refused, 75, "OutOfMemory", "the kernel"},
		"outlived":                {ending{status: signalled(syscall.SIGKILL)}, errOutlived, 70, "ToolchainFailed", "may not be whole"},
		"warm, ends badly":        {ending{status: exited(1), telling: "x"}, nil, 70, "ToolchainFailed", "was warm and asked to stop, but ended with 1: x"},
		"warm, mapped":            {ending{status: exited(4)}, nil, 75, "Retrying", "was warm"},
		"warm, no cache":          {ending{status: exited(0)}, nil, 70, "ToolchainFailed", "left nothing in"},
		"warm, no cache, 143":     {ending{status: exited(143)}, nil, 70, "ToolchainFailed", "left nothing in"},
	} {
		w := warmup{step: newStep("engine"), cacheDir: t.TempDir()}
		w.outputDir = t.TempDir()
		w.exitCodes[4] = meanings["Transient"]
		_, err := w.settle(&row.end, row.warming)
		got := w.judge(row.end, &transcript{})
		if err != nil || got.code != row.code || got.report.Reason != row.reason || !strings.Contains(got.report.Message, row.says) {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
}

func TestAssign(t *testing.T) {
	into := map[string]string{}
	for _, text := range []string{"a=1", "b=x=y", "c="} {
		if err := assign(into, text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if into["a"] != "1" || into["b"] != "x=y" || into["c"] != "" || len(into) != 3 {
		t.Errorf("%v", into)
	}
	for _, text := range []string{"", "a", "=1", "a=2"} {
		if assign(into, text) == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
