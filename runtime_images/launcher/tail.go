package main

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	tailLines     = 20
	tailLineBytes = 512
	// maxLineBytes bounds what a pattern sees of one line, and our memory; the rest of a longer line is only teed.
	maxLineBytes = 64 << 10
)

// errorLine is a line that names its error, as most tools and every Python exception do: advice often follows it.
var errorLine = regexp.MustCompile(`^\s*(?:[\w.]*(?:Error|Exception)\b|(?i:fatal|error)\b)`)

// transcript watches what the child writes, line by line: it keeps the last lines and looks for the patterns.
type transcript struct {
	mu sync.Mutex
	// retell says each line in the format of ours, instead of having it copied as it is.
	retell bool

	success *regexp.Regexp
	failure *regexp.Regexp
	// sought has a group; what it matched first is in found, and in foundInErrors for the standard error stream.
	sought        *regexp.Regexp
	found         string
	foundInErrors string

	lines      []string
	lastError  string
	named      string
	succeeded  bool
	failedLine string
	failed     bool
}

// add takes a line of either stream. An overwritten one was replaced by a carriage return, as progress bars do: it
// counts for the patterns, but is not kept.
func (t *transcript) add(raw []byte, fromStderr, overwritten bool) {
	line := clean(raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retell && !overwritten {
		retell(line, fromStderr)
	}
	if t.success != nil && !t.succeeded && t.success.MatchString(line) {
		t.succeeded = true
	}
	if t.failure != nil && !t.failed && t.failure.MatchString(line) {
		t.failed, t.failedLine = true, strings.TrimSpace(cut(line, tailLineBytes))
	}
	t.seek(line, fromStderr)
	if overwritten || strings.TrimSpace(line) == "" {
		return
	}
	line = cut(line, tailLineBytes)
	if fromStderr {
		t.lastError = line
		if errorLine.MatchString(line) {
			t.named = line
		}
	}
	if len(t.lines) == 2*tailLines {
		t.lines = append(t.lines[:0], t.lines[tailLines:]...)
	}
	t.lines = append(t.lines, line)
}

func (t *transcript) seek(line string, fromStderr bool) {
	into := &t.found
	if fromStderr {
		into = &t.foundInErrors
	}
	if t.sought == nil || *into != "" {
		return
	}
	if groups := t.sought.FindStringSubmatch(line); groups != nil {
		*into = strings.TrimSpace(groups[1])
	}
}

func (t *transcript) tail() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines[max(0, len(t.lines)-tailLines):], "\n")
}

// telling is the one line that most likely says what went wrong; empty if the child said nothing.
func (t *transcript) telling() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed:
		return t.failedLine
	case t.named != "":
		return strings.TrimSpace(t.named)
	case t.lastError != "":
		return strings.TrimSpace(t.lastError)
	case len(t.lines) > 0:
		return strings.TrimSpace(t.lines[len(t.lines)-1])
	}
	return ""
}

// splitter cuts one stream into lines for the transcript.
type splitter struct {
	to         *transcript
	fromStderr bool
	line       []byte
	// returned is the line before the last carriage return, which still shows if the next one is empty.
	returned []byte
}

func (s *splitter) feed(chunk []byte) {
	for len(chunk) > 0 {
		end := bytes.IndexAny(chunk, "\r\n")
		if end < 0 {
			s.extend(chunk)
			return
		}
		s.extend(chunk[:end])
		if chunk[end] == '\n' {
			s.newline()
		} else if len(s.line) > 0 {
			s.overwrite()
		}
		chunk = chunk[end+1:]
	}
}

func (s *splitter) extend(part []byte) {
	s.line = append(s.line, part[:min(len(part), maxLineBytes-len(s.line))]...)
}

func (s *splitter) overwrite() {
	if len(s.returned) > 0 {
		s.to.add(s.returned, s.fromStderr, true)
	}
	s.line, s.returned = s.returned[:0], s.line
}

func (s *splitter) newline() {
	if len(s.line) == 0 {
		s.line, s.returned = s.returned, s.line
	} else if len(s.returned) > 0 {
		s.to.add(s.returned, s.fromStderr, true)
	}
	s.to.add(s.line, s.fromStderr, false)
	s.line, s.returned = s.line[:0], s.returned[:0]
}

// end takes what the stream left without a line break.
func (s *splitter) end() {
	if len(s.line) > 0 || len(s.returned) > 0 {
		s.newline()
	}
}

// An escape sequence: CSI (colours, cursor), a string command such as OSC (titles, links), or a short one.
var escapes = regexp.MustCompile("\x1b(?:\\[[0-?]*[ -/]*[@-~]?|[\\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[ -/]*[0-~])")

// clean is a line as a person would read it: no escape sequences, no control characters but tabs, valid UTF-8.
func clean(raw []byte) string {
	if isPlain(raw) {
		return string(raw)
	}
	text := strings.ToValidUTF8(string(raw), "\uFFFD")
	if strings.Contains(text, "\x1b") {
		text = escapes.ReplaceAllString(text, "")
	}
	return strings.Map(func(char rune) rune {
		if (char < ' ' && char != '\t') || (char >= 0x7f && char < 0xa0) {
			return -1
		}
		return char
	}, text)
}

func isPlain(raw []byte) bool {
	ascii := true
	for _, char := range raw {
		if (char < ' ' && char != '\t') || char == 0x7f {
			return false
		}
		ascii = ascii && char < utf8.RuneSelf
	}
	return ascii
}
