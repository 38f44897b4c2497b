package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestReportFits(t *testing.T) {
	many := map[string]string{}
	for range 200 {
		many["tool-"+strings.Repeat("x", len(many))] = "1.0"
	}
	for name, r := range map[string]report{
		"plain":          {Reason: "Built", Message: "fine"},
		"long message":   {Reason: "X", Message: "start " + strings.Repeat("é", 5000) + " end"},
		"long tail":      {Reason: "X", Message: "m", Facts: facts{LogTail: strings.Repeat(strings.Repeat("名", 170)+"\n", 19) + "last"}},
		"quotes":         {Reason: "X", Message: strings.Repeat(`"\`, 5000), Facts: facts{LogTail: strings.Repeat(`\"`, 2000)}},
		"invalid utf-8":  {Reason: "X", Message: strings.Repeat("\xff\xe5", 3000)},
		"all together":   {Reason: "X", Message: strings.Repeat("é ", 5000), Versions: map[string]string{"v": strings.Repeat("1", 900)}, Facts: facts{LogTail: strings.Repeat("é\n", 900)}},
		"many versions":  {Reason: "X", Message: strings.Repeat("m", 900), Versions: many, Facts: facts{Step: "s"}},
		"lines":          {Reason: "X", Message: "a\nb\r\n\tc\x1b[31m"},
		"html is itself": {Reason: "X", Message: "<a> & b"},
	} {
		text := r.encode()
		var back report
		if err := json.Unmarshal(text, &back); err != nil || len(text) > maxReportBytes || !utf8.Valid(text) || validReport(text) != nil {
			t.Errorf("%s: %d bytes, %v: %s", name, len(text), err, text)
		}
		if back.Reason != r.Reason || back.Message == "" || strings.Contains(back.Message, "\n") {
			t.Errorf("%s: %+v", name, back)
		}
		switch name {
		case "long message":
			if !strings.HasPrefix(back.Message, "start é") || !strings.HasSuffix(back.Message, "é end") || len(back.Message) > maxMessageBytes {
				t.Errorf("%s: %q", name, back.Message)
			}
		case "long tail":
			if !strings.HasSuffix(back.Facts.LogTail, "\nlast") || len(text) < maxReportBytes-600 {
				t.Errorf("%s: %d bytes, %q", name, len(text), back.Facts.LogTail)
			}
		case "lines":
			if back.Message != "a b c" {
				t.Errorf("%s: %q", name, back.Message)
			}
		case "all together":
			if back.Versions["v"] == "" || back.Facts.LogTail == "" {
				t.Errorf("%s: %s", name, text)
			}
		case "html is itself":
			if !strings.Contains(string(text), "<a> & b") {
				t.Errorf("%s: %s", name, text)
			}
		}
	}
}

func TestValidReport(t *testing.T) {
	for text, valid := range map[string]bool{
		`{"reason":"Built"}`: true,
		`{"reason":"Built","message":"m","retryable":true,"digest":"d","sizeBytes":3,"seconds":1,"versions":{},"facts":{"a":[1]},"new":0}`: true,
		``:                                   false,
		`{}`:                                 false,
		`[]`:                                 false,
		`{"reason":""}`:                      false,
		`{"Reason":"Built"}`:                 false,
		`{"reason":5}`:                       false,
		`{"reason":null}`:                    false,
		`{"reason":"X","message":null}`:      false,
		`{"reason":"X","retryable":"no"}`:    false,
		`{"reason":"X","sizeBytes":1.5}`:     false,
		`{"reason":"X","facts":[]}`:          false,
		`{"reason":"X"} and a half sentence`: false,
	} {
		if err := validReport([]byte(text)); (err == nil) != valid {
			t.Errorf("%s: %v", text, err)
		}
	}
}
