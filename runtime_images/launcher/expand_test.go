package main

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	variables := newExpander(serveCatalogue, []string{
		"MODEL_DIR=/rma/model", "TP=4", "TARGET=a${TP}$$b", "PP=", "HOME=/tmp", "SERVED_NAME=名",
	})
	for text, want := range map[string]string{
		"":                       "",
		"plain":                  "plain",
		"${MODEL_DIR}/x":         "/rma/model/x",
		"${TP}${TP}":             "44",
		"--tp=${TP},--pp=${PP}.": "--tp=4,--pp=.",
		"$$":                     "$",
		"$${TP}":                 "${TP}",
		"$$$${TP}":               "$${TP}",
		"$$${TP}":                "$4",
		"$TP $ $(TP) a$":         "$TP $ $(TP) a$",
		"${TARGET}":              "a${TP}$$b",
		"{${SERVED_NAME}}":       "{名}",
	} {
		if got, err := variables.expand("argument 0", text); err != nil || got != want {
			t.Errorf("expand(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for text, complaint := range map[string]string{
		"${HOME}":       "argument 0 names ${HOME}, which is no variable; there are ARTIFACT_DIR, CACHE_DIR,",
		"${}":           "names ${}, which is no variable",
		"${tp}":         "names ${tp}, which is no variable",
		"${TP":          "${ without }",
		"a${ TP}":       "names ${ TP}",
		"${OUTPUT}":     "names ${OUTPUT}, which is no variable",
		"${DTYPE}":      "names ${DTYPE}, which is not set here; the operator",
		"${DEVICE_IDS}": "not set here; the device plugin sets it",
	} {
		if got, err := variables.expand("argument 0", text); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("expand(%q) = %q, %v; want an error with %q", text, got, err, complaint)
		}
	}
}

func TestEnvironment(t *testing.T) {
	environ := []string{"TARGET=x${nothing}$$", "WORK=/w", "A=${WORK}/a", "PRICE=$$5", "EMPTY=", "EQUALS=a=b"}
	got, err := newExpander(buildCatalogue, environ).environment(environ)
	want := "TARGET=x${nothing}$$|WORK=/w|A=/w/a|PRICE=$5|EMPTY=|EQUALS=a=b"
	if strings.Join(got, "|") != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	environ = []string{"PS1=${debian_chroot}"}
	if _, err := newExpander(buildCatalogue, environ).environment(environ); err == nil ||
		!strings.Contains(err.Error(), "variable PS1 names ${debian_chroot}") || !strings.Contains(err.Error(), "set it in env") {
		t.Errorf("got %v", err)
	}
}

func TestInputs(t *testing.T) {
	environ := []string{"INPUT_data=/rma/inputs/data", "INPUT_from=${x}", "INPUT_=/no", "INPUT_a.b=/no", "DATA=${INPUT_data}/x"}
	variables := newExpander(buildCatalogue, environ)
	for text, want := range map[string]string{
		"${INPUT_data}/a": "/rma/inputs/data/a",
		"${INPUT_from}":   "${x}",
	} {
		if got, err := variables.expand("argument 0", text); err != nil || got != want {
			t.Errorf("expand(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for text, complaint := range map[string]string{
		"${INPUT_other}": "which is not set here; the build has no input other",
		"${INPUT_}":      "is no variable; there are CACHE_DIR,",
		"${INPUT_a.b}":   "TP, WORK, and INPUT_name for each input; $$ is a dollar",
		"${input_data}":  "is no variable",
	} {
		if got, err := variables.expand("argument 0", text); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("expand(%q) = %q, %v; want an error with %q", text, got, err, complaint)
		}
	}
	if _, err := newExpander(serveCatalogue, environ).expand("argument 0", "${INPUT_data}"); err == nil {
		t.Error("an engine has no inputs")
	}
	if got, err := variables.environment(environ[:2]); err != nil || strings.Join(got, "|") != strings.Join(environ[:2], "|") {
		t.Errorf("%v %v", got, err)
	}
}
