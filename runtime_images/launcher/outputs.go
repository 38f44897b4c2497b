package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// checkGlobs refuses patterns that would never say anything about an output.
func checkGlobs(globs []string) error {
	for _, glob := range globs {
		if strings.Contains(glob, "**") {
			return fmt.Errorf("--output %s: ** is not known; name the directory, it is looked through to the bottom", glob)
		}
		if _, err := filepath.Match(glob, ""); err != nil || glob == "" {
			return fmt.Errorf("--output %q is no glob", glob)
		}
	}
	return nil
}

// checkOutputs tells which output is missing or empty. A relative glob is under base. Every match counts: an empty
// shard among whole ones is a failure.
func checkOutputs(globs []string, base string) error {
	for _, glob := range globs {
		pattern := glob
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(base, pattern)
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		if len(matches) == 0 {
			return fmt.Errorf("the output %s is missing", pattern)
		}
		for _, match := range matches {
			full, err := hasContent(match)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("the output %s is missing", match)
			}
			if err != nil {
				return fmt.Errorf("the output %s cannot be read: %w", match, err)
			}
			if !full {
				return fmt.Errorf("the output %s is empty", match)
			}
		}
	}
	return nil
}

// hasContent is true for a file with bytes in it and for a directory with such a file at any depth.
func hasContent(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if !info.IsDir() {
		return info.Size() > 0, nil
	}
	found := false
	err = filepath.WalkDir(path+"/.", func(inner string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if info, err := os.Stat(inner); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}
