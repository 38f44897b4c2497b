package main

import "fmt"

// Exit codes of the contract; they mean the same for every program of ours.
const (
	codeOK                = 0
	codeBadInput          = 64
	codeArtifactMismatch  = 65
	codeDeviceMissing     = 66
	codeDriverMismatch    = 67
	codeSourceUnreachable = 69
	codeToolchainFailure  = 70
	codeTransient         = 75
)

// reasonOf is what an exit code of ours means where its program gave no reason of its own.
var reasonOf = map[int]string{
	codeBadInput:          "SourceInvalid",
	codeArtifactMismatch:  "ArtifactMismatch",
	codeDeviceMissing:     "DeviceMissing",
	codeDriverMismatch:    "DriverMismatch",
	codeSourceUnreachable: "SourceUnreachable",
	codeToolchainFailure:  "ToolchainFailed",
	codeTransient:         "Retrying",
}

// verdict is what a failure comes to.
type verdict struct {
	code   int
	reason string
}

// meanings are the words that --exit-code takes for a vendor's exit codes.
var meanings = map[string]verdict{
	"BadInput":         {codeBadInput, "SourceInvalid"},
	"UnsupportedModel": {codeBadInput, "UnsupportedModel"},
	"ToolchainFailure": {codeToolchainFailure, "ToolchainFailed"},
	"Transient":        {codeTransient, "Retrying"},
}

var outOfMemory = verdict{codeTransient, "OutOfMemory"}

func isOurs(code int) bool {
	_, known := reasonOf[code]
	return known || code == codeOK
}

func isRetryable(code int) bool {
	return code == codeSourceUnreachable || code == codeTransient
}

// outcome is how the launcher ends.
type outcome struct {
	code   int
	report report
	// keepOwn leaves the report that the child wrote where it is.
	keepOwn bool
}

func (v verdict) because(format string, args ...any) outcome {
	return outcome{code: v.code, report: report{Reason: v.reason, Message: fmt.Sprintf(format, args...)}}
}

// refuse is the outcome of arguments or variables that cannot be used as they are.
func refuse(format string, args ...any) outcome {
	return verdict{codeBadInput, "InvalidSpec"}.because(format, args...)
}
