package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxReportBytes     = 2048
	maxMessageBytes    = 700
	minMessageBytes    = 80
	terminationLogPath = "/dev/termination-log"
	terminationLogName = "RMA_TERMINATION_LOG"
)

// report is what a container leaves as its termination message.
type report struct {
	Reason    string            `json:"reason"`
	Message   string            `json:"message,omitempty"`
	Retryable bool              `json:"retryable"`
	Seconds   float64           `json:"seconds,omitempty"`
	Versions  map[string]string `json:"versions,omitempty"`
	Facts     facts             `json:"facts,omitzero"`
}

type facts struct {
	Step    string `json:"step,omitempty"`
	LogTail string `json:"logTail,omitempty"`
	// ReadySeconds is how long an engine took until it answered, BucketSeconds what each bucket took after that.
	ReadySeconds  float64            `json:"readySeconds,omitempty"`
	BucketSeconds map[string]float64 `json:"bucketSeconds,omitempty"`
}

// encode gives at most maxReportBytes of JSON. The oldest lines of the log go first, then the middle of the message,
// then all versions: a part of them would mislead.
func (r report) encode() []byte {
	r.Message = cutMiddle(oneLine(r.Message), maxMessageBytes)
	lines := strings.Split(r.Facts.LogTail, "\n")
	for {
		text := marshal(r)
		switch {
		case len(text) <= maxReportBytes:
			return text
		case r.Facts.LogTail != "":
			lines = lines[1:]
			r.Facts.LogTail = strings.Join(lines, "\n")
		case len(r.Message) > minMessageBytes:
			r.Message = cutMiddle(r.Message, minMessageBytes)
		default:
			r.Versions = nil
			r.Facts.Step = ""
		}
	}
}

func marshal(value any) []byte {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // every member can be encoded
	}
	return bytes.TrimRight(buffer.Bytes(), "\n")
}

// oneLine is text without line breaks, escape sequences and invalid UTF-8.
func oneLine(text string) string {
	return strings.Join(strings.Fields(clean([]byte(strings.ReplaceAll(text, "\n", " ")))), " ")
}

// cutMiddle shortens text to at most limit bytes: the beginning says what, the end often why.
func cutMiddle(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const mark = " … "
	half := (limit - len(mark)) / 2
	return cut(text, half) + mark + cutFront(text, half)
}

// cut gives the longest beginning of text that has at most limit bytes and whole characters.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// cutFront gives the longest end of text that has at most limit bytes and whole characters.
func cutFront(text string, limit int) string {
	start := max(0, len(text)-limit)
	for start < len(text) && !utf8.RuneStart(text[start]) {
		start++
	}
	return text[start:]
}

func seconds(duration time.Duration) float64 {
	return math.Round(duration.Seconds()*1000) / 1000
}

// terminationLog is the file that the kubelet reads when the container has ended; empty where there is none.
type terminationLog string

func findTerminationLog() terminationLog {
	if path := os.Getenv(terminationLogName); path != "" {
		return terminationLog(path)
	}
	if _, err := os.Stat(terminationLogPath); err == nil {
		return terminationLogPath
	}
	return ""
}

// clear empties it, so that what is found later was written by the child.
func (t terminationLog) clear() {
	if t != "" {
		// Where this fails, write will, and says so.
		_ = os.Truncate(string(t), 0)
	}
}

func (t terminationLog) write(r report) error {
	if t == "" {
		return nil
	}
	return os.WriteFile(string(t), r.encode(), 0o644)
}

// childReport tells whether the child left a report that the operator can read.
func (t terminationLog) childReport() bool {
	if t == "" {
		return false
	}
	text, err := readLimited(string(t), maxReportBytes+1)
	return err == nil && len(text) <= maxReportBytes && validReport(text) == nil
}

// validReport holds text against what the operator's parser demands: the members that it knows have their types.
func validReport(text []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return err
	}
	expected := []struct {
		name string
		into any
	}{
		{"reason", new(string)}, {"message", new(string)}, {"retryable", new(bool)}, {"digest", new(string)},
		{"sizeBytes", new(int64)}, {"seconds", new(float64)}, {"versions", new(map[string]json.RawMessage)},
		{"facts", new(map[string]json.RawMessage)},
	}
	for _, member := range expected {
		raw, present := members[member.name]
		if !present {
			continue
		}
		if string(raw) == "null" {
			return fmt.Errorf("%s is null", member.name)
		}
		if err := json.Unmarshal(raw, member.into); err != nil {
			return fmt.Errorf("%s: %w", member.name, err)
		}
	}
	if *expected[0].into.(*string) == "" {
		return fmt.Errorf("no reason in it")
	}
	return nil
}
