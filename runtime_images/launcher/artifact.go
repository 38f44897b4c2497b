package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

const (
	artifactFile     = "rma-artifact.json"
	artifactSchema   = 1
	maxArtifactBytes = 1 << 20
)

// artifact is what rma-artifact.json says of the tree that it lies in.
type artifact struct {
	Schema   int               `json:"schema,omitempty"`
	Key      string            `json:"key,omitempty"`
	Format   string            `json:"format,omitempty"`
	Products []string          `json:"products,omitempty"`
	Drivers  []string          `json:"drivers,omitempty"`
	Versions map[string]string `json:"versions,omitempty"`
}

// readArtifact reads the description in dir and holds it against the key that the pod was made for.
func readArtifact(dir, key string) (artifact, error) {
	var found artifact
	path := filepath.Join(dir, artifactFile)
	text, err := readLimited(path, maxArtifactBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return found, fmt.Errorf("%s does not exist: %s holds no artifact, or an incomplete one", path, dir)
	}
	if err != nil {
		return found, err
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return found, fmt.Errorf("%s is not what we write: %w", path, err)
	}
	if found.Schema != artifactSchema {
		return found, fmt.Errorf("%s has schema %d; this program knows %d", path, found.Schema, artifactSchema)
	}
	if found.Key != key {
		return found, fmt.Errorf("%s names the key %q; the pod was made for %q", path, found.Key, key)
	}
	return found, nil
}
