package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The catalogue of variables, as in crds/rm_api/names.py.
var (
	buildVariables = []string{
		"CACHE_DIR", "DEVICE_COUNT", "DTYPE", "MAX_BATCH", "MAX_SEQ", "MODEL_DIR", "OUTPUT", "PP", "TARGET", "TP", "WORK",
	}
	serveVariables = []string{
		"ARTIFACT_DIR", "CACHE_DIR", "DEVICE_COUNT", "DEVICE_IDS", "DEVICE_INDEXES", "DTYPE", "MAX_BATCH", "MAX_SEQ",
		"MODEL_DIR", "PORT", "PP", "SERVED_NAME", "TARGET", "TP",
	}
)

// inputPrefix begins the variables that are the directories of a build's inputs.
const inputPrefix = "INPUT_"

var inputName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// catalogue is the variables that a text may name.
type catalogue struct {
	names []string
	// inputs: those of a build's inputs, too.
	inputs bool
}

var (
	buildCatalogue = catalogue{names: buildVariables, inputs: true}
	serveCatalogue = catalogue{names: serveVariables}
)

func (c catalogue) has(name string) bool {
	_, isInput := c.input(name)
	return isInput || slices.Contains(c.names, name)
}

// input is the name of the input whose directory the variable is.
func (c catalogue) input(variable string) (string, bool) {
	name, found := strings.CutPrefix(variable, inputPrefix)
	return name, c.inputs && found && inputName.MatchString(name)
}

func (c catalogue) String() string {
	list := strings.Join(c.names, ", ")
	if c.inputs {
		list += ", and " + inputPrefix + "name for each input"
	}
	return list
}

// expander replaces ${NAME} by the value that NAME has in the launcher's environment.
type expander struct {
	catalogue catalogue
	values    map[string]string
}

func newExpander(known catalogue, environ []string) expander {
	values := map[string]string{}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && known.has(name) {
			values[name] = value
		}
	}
	return expander{known, values}
}

// expand is one pass: what comes out of a variable is not looked at again. where names the place in an error.
func (e expander) expand(where, text string) (string, error) {
	var result strings.Builder
	for rest := text; ; {
		before, after, found := strings.Cut(rest, "$")
		result.WriteString(before)
		switch {
		case !found:
			return result.String(), nil
		case strings.HasPrefix(after, "$"):
			result.WriteByte('$')
			rest = after[1:]
		case strings.HasPrefix(after, "{"):
			name, tail, closed := strings.Cut(after[1:], "}")
			if !closed {
				return "", fmt.Errorf("%s has ${ without }; write $$ for a dollar: %s", where, text)
			}
			value, err := e.value(where, name)
			if err != nil {
				return "", err
			}
			result.WriteString(value)
			rest = tail
		default:
			result.WriteByte('$')
			rest = after
		}
	}
}

func (e expander) value(where, name string) (string, error) {
	if !e.catalogue.has(name) {
		return "", fmt.Errorf("%s names ${%s}, which is no variable; there are %s; $$ is a dollar",
			where, name, e.catalogue)
	}
	value, set := e.values[name]
	if !set {
		hint := "the operator sets it in a container that it made"
		if strings.HasPrefix(name, "DEVICE_I") {
			hint = "the device plugin sets it in a container that a device was allocated to"
		}
		if input, isInput := e.catalogue.input(name); isInput {
			hint = "the build has no input " + input
		}
		return "", fmt.Errorf("%s names ${%s}, which is not set here; %s", where, name, hint)
	}
	return value, nil
}

func (e expander) all(what string, texts []string) ([]string, error) {
	expanded := make([]string, 0, len(texts))
	for i, text := range texts {
		value, err := e.expand(fmt.Sprintf("%s %d", what, i), text)
		if err != nil {
			return nil, err
		}
		expanded = append(expanded, value)
	}
	return expanded, nil
}

// environment expands the values of a child's environment. The catalogue's own variables are values, not templates.
func (e expander) environment(environ []string) ([]string, error) {
	expanded := make([]string, 0, len(environ))
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !e.catalogue.has(name) {
			var err error
			if value, err = e.expand("the environment variable "+name, value); err != nil {
				return nil, fmt.Errorf("%w (if the image brings %s, set it in env)", err, name)
			}
		}
		expanded = append(expanded, name+"="+value)
	}
	return expanded, nil
}
