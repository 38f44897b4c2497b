package main

import (
	"fmt"
	"regexp"
)

// maxVersionBytes is what a status takes.
const maxVersionBytes = 256

// runVersionProbe finds out the version of a tool from what it prints.
func runVersionProbe(args, environ []string, log terminationLog) outcome {
	s := newStep("version probe")
	var sought *regexp.Regexp
	flags := s.ownFlags("version-probe")
	flags.Func("pattern", "", pattern(&sought))
	if err := s.parse(flags, args, environ); err != nil {
		return refuse("%v", err)
	}
	if sought == nil || sought.NumSubexp() < 1 {
		return refuse("version-probe needs --pattern with a group, such as version ([0-9.]+)")
	}
	output := s.transcript()
	output.sought = sought
	a, err := s.begin(log, output)
	if err != nil {
		return refuse("%v", err)
	}
	end := a.run()
	result := s.judge(end, output)
	if result.code != codeOK {
		return a.conclude(result)
	}
	// Warnings go to standard error, and often name versions of something else.
	version := output.found
	if version == "" {
		version = output.foundInErrors
	}
	switch {
	case version == "":
		problem := fmt.Sprintf("no line of its output matches the pattern %s", sought)
		if end.telling != "" {
			problem += "; last: " + end.telling
		}
		return a.conclude(s.failing.because("the version probe ended with 0, but %s", problem))
	case len(version) > maxVersionBytes:
		return a.conclude(s.failing.because("what the pattern %s matches is longer than %d bytes: %s", sought, maxVersionBytes, cut(version, 80)))
	}
	s.versions[s.name] = version
	return a.conclude(outcome{report: report{Reason: "Ready", Message: fmt.Sprintf("%s is %s", s.name, version)}})
}
