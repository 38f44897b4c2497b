package main

import (
	"strings"
	"syscall"
	"testing"
)

func TestInterpret(t *testing.T) {
	for name, row := range map[string]struct {
		line   string
		status syscall.WaitStatus
		end    ending
		code   int
		reason string
		says   string
	}{
		"returned":              {line: `{"versions":{"a":"1"}}`, code: 0, reason: "Built"},
		"returned, then died":   {line: `{"versions":{}}`, status: signalled(syscall.SIGSEGV), code: 70, reason: "ToolchainFailed", says: "signal 11"},
		"raised":                {line: `{"raised":"E: x"}`, status: exited(1), code: 70, reason: "ToolchainFailed", says: "the step raised E: x"},
		"raised, but ends in 0": {line: `{"raised":"E: x"}`, status: exited(0), code: 70, reason: "ToolchainFailed", says: "the step raised E: x"},
		"raised, mapped":        {line: `{"raised":"E: x"}`, status: exited(3), code: 64, reason: "UnsupportedModel"},
		"raised with code":      {line: `{"raised":"E","code":66}`, status: exited(1), code: 66, reason: "DeviceMissing"},
		"code of nobody":        {line: `{"raised":"E","code":68}`, status: exited(1), code: 70, reason: "ToolchainFailed"},
		"no code":               {line: `{"raised":"E","code":0}`, status: exited(1), code: 70, reason: "ToolchainFailed"},
		"unsupported":           {line: `{"raised":"E","unsupported":true}`, status: exited(1), code: 64, reason: "UnsupportedModel"},
		"unsupported with 64":   {line: `{"raised":"E","unsupported":true,"code":64}`, status: exited(1), code: 64, reason: "UnsupportedModel"},
		"unsupported with 75":   {line: `{"raised":"E","unsupported":true,"code":75}`, status: exited(1), code: 75, reason: "Retrying"},
		"memory":                {line: `{"raised":"E","memory":true}`, status: exited(1), code: 75, reason: "OutOfMemory", says: "raise resources.memory"},
		"memory with 75":        {line: `{"raised":"E","memory":true,"code":75}`, status: exited(1), code: 75, reason: "OutOfMemory"},
		"the kernel knows":      {line: `{"raised":"E"}`, status: exited(1), end: ending{memory: "the kernel"}, code: 75, reason: "OutOfMemory"},
		"asked to stop":         {line: `{"raised":"E","unsupported":true}`, status: exited(1), end: ending{interrupted: true}, code: 75, reason: "Retrying", says: "asked to stop and raised E"},
		"refused":               {line: `{"refused":"there is no module x"}`, status: exited(1), code: 64, reason: "InvalidSpec", says: "no module x"},
		"left":                  {line: `{"left":true}`, code: 0, reason: "Built"},
		"left with 3":           {line: `{"left":true}`, status: exited(3), code: 64, reason: "UnsupportedModel"},
		"nothing":               {code: 70, reason: "ToolchainFailed", says: "without having returned"},
		"nothing, 3":            {status: exited(3), code: 64, reason: "UnsupportedModel"},
		"half a line":           {line: `{"versions":{"a"`, code: 70, reason: "ToolchainFailed", says: "without having returned"},
		"own report":            {line: `{"left":true}`, status: exited(69), end: ending{ownReport: true}, code: 69, reason: "SourceUnreachable"},
	} {
		s := newStep("step")
		s.exitCodes[3] = meanings["UnsupportedModel"]
		row.end.status = row.status
		line := row.line
		if line != "" && name != "half a line" {
			line += "\n"
		}
		row.end.interpret([]byte(line), &s)
		got := s.judge(row.end, &transcript{})
		if got.code != row.code || got.report.Reason != row.reason || !strings.Contains(got.report.Message, row.says) {
			t.Errorf("%s: %+v", name, got)
		}
		if name == "returned" && s.versions["a"] != "1" {
			t.Errorf("%s: %v", name, s.versions)
		}
	}
}

func TestCallable(t *testing.T) {
	for text, is := range map[string]bool{
		"a:b": true, "a.b_c.d1:E.f": true, "_a:_b": true, "modül:größe": true,
		"": false, "a": false, ":": false, "a:": false, ":b": false, "a:b:c": false, "a..b:c": false, "a:b.": false, "-c:b": false,
		"a b:c": false, "1a:b": false, "a:b()": false, "a:b\n": false, "../a:b": false,
	} {
		if callable.MatchString(text) != is {
			t.Errorf("%q", text)
		}
	}
}
