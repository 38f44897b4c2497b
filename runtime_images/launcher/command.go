package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

const maxCommandBytes = 1 << 20

// command is an engine's command as it was worked out beforehand, where artifact and model could be read: its texts may
// name variables, which are known only here.
type command struct {
	Argv []string          `json:"argv"`
	Env  map[string]string `json:"env"`
}

func readCommand(path string) (command, error) {
	var found command
	text, err := readLimited(path, maxCommandBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return found, fmt.Errorf("there is no command in %s; `rm-abstract engine-command` writes it before the engine is started", path)
	}
	if err != nil {
		return found, err
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return found, fmt.Errorf("%s is no command: %w", path, err)
	}
	if len(found.Argv) == 0 || found.Argv[0] == "" {
		return found, fmt.Errorf("%s names no program in argv", path)
	}
	return found, nil
}

// under adds to an environment what the command wants and the environment does not say: whoever wrote that knows better.
func (c command) under(environ []string) []string {
	said := map[string]bool{}
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		said[name] = true
	}
	all := slices.Clone(environ)
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		if !said[name] {
			all = append(all, name+"="+c.Env[name])
		}
	}
	return all
}
