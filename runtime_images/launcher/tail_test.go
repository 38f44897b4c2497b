package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// transcribe feeds text in pieces of size bytes, so that every place of a piece's end is tried.
func transcribe(text string, size int, t *transcript) *transcript {
	lines := splitter{to: t}
	reader := iotest.OneByteReader(strings.NewReader(text))
	piece := make([]byte, 0, size)
	one := make([]byte, 1)
	for {
		n, err := reader.Read(one)
		if piece = append(piece, one[:n]...); len(piece) == size || err != nil {
			lines.feed(piece)
			piece = piece[:0]
		}
		if err != nil {
			lines.end()
			return t
		}
	}
}

func TestTailShowsWhatATerminalWould(t *testing.T) {
	for name, row := range map[string]struct{ text, want string }{
		"nothing":               {"", ""},
		"lines":                 {"a\nb\n", "a\nb"},
		"no last break":         {"a\nb", "a\nb"},
		"blank lines":           {"a\n\n \n\nb\n", "a\nb"},
		"dos":                   {"a\r\nb\r\n", "a\nb"},
		"progress bar":          {" 1%\r 50%\r100%\ndone\n", "100%\ndone"},
		"bar that stays":        {" 1%\r100%\r\ndone\n", "100%\ndone"},
		"bar at the end":        {"a\n 1%\r 2%\r", "a\n 2%"},
		"double return":         {"a\r\r\nb\n", "a\nb"},
		"colours":               {"\x1b[1;31mred\x1b[0m\x1b[K x\n", "red x"},
		"cursor and title":      {"\x1b]0;title\x07\x1b[2A\x1b[?25lx\x1b(B\x1b]8;;u\x1b\\y\n", "xy"},
		"cut escape":            {"x\x1b[31\n", "x"},
		"control characters":    {"a\x00\x07\x08b\tc\x7f\u0085\n", "ab\tc"},
		"utf-8":                 {"é名🚀\n", "é名🚀"},
		"invalid utf-8":         {"a\xff\xfeb\xe5\x90\n", "a�b�"},
		"long line":             {strings.Repeat("é", 1000) + "\nb\n", strings.Repeat("é", 256) + "\nb"},
		"long line, odd offset": {"x" + strings.Repeat("é", 1000) + "\n", "x" + strings.Repeat("é", 255)},
		"endless line":          {strings.Repeat("x", 3*maxLineBytes) + "\nb\n", strings.Repeat("x", tailLineBytes) + "\nb"},
	} {
		for _, size := range []int{1, 2, 3, 7, 4096, 1 << 20} {
			if got := transcribe(row.text, size, &transcript{}).tail(); got != row.want {
				t.Errorf("%s in pieces of %d: %q; want %q", name, size, got, row.want)
			}
		}
	}
}

func TestTailKeepsTheLastLines(t *testing.T) {
	for _, count := range []int{1, 19, 20, 21, 39, 40, 41, 1000} {
		var all []string
		for i := range count {
			all = append(all, fmt.Sprint("line ", i))
		}
		got := transcribe(strings.Join(all, "\n")+"\n", 100, &transcript{}).tail()
		if want := strings.Join(all[max(0, count-tailLines):], "\n"); got != want {
			t.Errorf("%d lines: %q; want %q", count, got, want)
		}
	}
}

func TestPatterns(t *testing.T) {
	for name, row := range map[string]struct {
		pattern, text string
		line          string
		matches       bool
	}{
		"in a line":              {"E[0-9]+", "ok\nan E42 came\nE43\n", "an E42 came", true},
		"none":                   {"E[0-9]+", "ok\n", "", false},
		"anchors are a line's":   {"^done$", "not done\ndone\n", "done", true},
		"anchors are a line's 2": {"^done$", "done!\n", "", false},
		"through colours":        {"^error: x", "\x1b[31merror\x1b[0m: x\n", "error: x", true},
		"overwritten":            {"lost", "device lost\r100%\n", "device lost", true},
		"last, no break":         {"lost", "a\ndevice lost", "device lost", true},
		"not across lines":       {"a.*b", "a\nb\n", "", false},
		"case by flag":           {"(?i)ERROR", "Error\n", "Error", true},
		"far into a line":        {"needle", strings.Repeat("x", 60000) + "needle\n", strings.Repeat("x", tailLineBytes), true},
	} {
		for _, size := range []int{1, 5, 1 << 20} {
			compiled := regexp.MustCompile(row.pattern)
			got := transcribe(row.text, size, &transcript{success: compiled, failure: compiled})
			if got.failed != row.matches || got.succeeded != row.matches || got.failedLine != row.line {
				t.Errorf("%s in pieces of %d: %v %v %q", name, size, got.failed, got.succeeded, got.failedLine)
			}
		}
	}
}

func TestTelling(t *testing.T) {
	said := &transcript{failure: regexp.MustCompile("bad")}
	stdout, stderr := splitter{to: said}, splitter{to: said, fromStderr: true}
	for _, row := range []struct {
		into       *splitter
		text, want string
	}{
		{&stdout, "", ""},
		{&stdout, "hello\n", "hello"},
		{&stderr, "  ValueError: x \n\n", "ValueError: x"},
		{&stdout, "more\n", "ValueError: x"},
		{&stderr, "You can update the package.\n", "ValueError: x"},
		{&stderr, "nn.modules.ShapeError: y\nerror_rate 5\n", "nn.modules.ShapeError: y"},
		{&stderr, "fatal: z\n", "fatal: z"},
		{&stdout, "a bad thing\n", "a bad thing"},
		{&stderr, "Traceback\n", "a bad thing"},
	} {
		row.into.feed([]byte(row.text))
		if got := said.telling(); got != row.want {
			t.Errorf("after %q: %q; want %q", row.text, got, row.want)
		}
	}
}

func TestSought(t *testing.T) {
	said := &transcript{sought: regexp.MustCompile("v([0-9. ]*)")}
	stdout, stderr := splitter{to: said}, splitter{to: said, fromStderr: true}
	for _, row := range []struct {
		into              *splitter
		text, out, errors string
	}{
		{&stderr, "glibc v2.31\n", "", "2.31"},
		{&stdout, "very\n", "", "2.31"},
		{&stdout, "\x1b[1mv 7 \x1b[0m\rover\n", "7", "2.31"},
		{&stdout, "v8\n", "7", "2.31"},
	} {
		row.into.feed([]byte(row.text))
		if said.found != row.out || said.foundInErrors != row.errors {
			t.Errorf("after %q: %q %q", row.text, said.found, said.foundInErrors)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("a\rb\r\n\x1b[31mé\xff"), 3)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		got := transcribe(string(text), max(1, size), &transcript{}).tail()
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\r\x00") {
			t.Errorf("%q", got)
		}
		for _, line := range strings.Split(got, "\n") {
			if len(line) > tailLineBytes {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
	})
}
