package main

// runStep runs a build step to its end.
func runStep(args, environ []string, log terminationLog) outcome {
	s := newStep("step")
	if err := s.parse(s.judgedFlags("run"), args, environ); err != nil {
		return refuse("%v", err)
	}
	if missing, fine := s.checkDevices(); !fine {
		return missing
	}
	output := s.transcript()
	a, err := s.begin(log, output)
	if err != nil {
		return refuse("%v", err)
	}
	return a.conclude(s.judge(a.run(), output))
}
