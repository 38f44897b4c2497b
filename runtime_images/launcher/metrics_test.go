package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadMetrics(t *testing.T) {
	for _, row := range []struct {
		name, text       string
		tokens, requests float64
		counted, watched bool
	}{
		{"vLLM", `# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b}c"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:prompt_tokens_total{model_name="m"} 1.5e+02
vllm:generation_tokens_total{model_name="m"} 50.0 1700000000000
`, 200, 5, true, true},
		{"SGLang", "sglang:num_running_reqs 1\nsglang:num_queue_reqs 4\nsglang:generation_tokens_total 7\n", 7, 5, true, true},
		{"TGI", "tgi_batch_current_size 2\ntgi_queue_size 1\ntgi_request_generated_tokens_sum 9\n", 9, 3, true, true},
		{"others", "http_requests_total 9\nprocess_cpu_seconds_total 3.5\n", 0, 0, false, false},
		{"nothing", "", 0, 0, false, false},
		{"OpenMetrics", "a_tokens_total NaN\n# EOF\n", 0, 0, true, false},
	} {
		found, err := readMetrics([]byte(row.text))
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if row.name != "OpenMetrics" && found.tokens != row.tokens || found.counted != row.counted ||
			found.requests != row.requests || found.watched != row.watched {
			t.Errorf("%s: %v tokens (%v), %v requests (%v)", row.name, found.tokens, found.counted, found.requests, found.watched)
		}
		if strings.Contains(string(found.text), "EOF") {
			t.Errorf("%s: what follows would be lost", row.name)
		}
	}
}

// What is no exposition must not get in among our series.
func TestWhatIsNoMetrics(t *testing.T) {
	for _, text := range []string{"<html>", "name", "name{a=\"b\"}", "name value", "}{ 1", `{"a": 1}`} {
		if found, err := readMetrics([]byte(text)); err == nil {
			t.Errorf("%q counts as metrics: %q", text, found.text)
		}
	}
}

func TestStartsAreCounted(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "engine.json")
	for want := 1; want <= 3; want++ {
		if got := countStart(path); got != want {
			t.Errorf("start %d counts as %d", want, got)
		}
	}
	if err := os.WriteFile(filepath.Join(directory, startsFile), []byte("many"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := countStart(path); got != 1 {
		t.Errorf("a file that says nothing counts as %d", got)
	}
	if got := countStart(""); got != 1 {
		t.Errorf("without a volume it is start %d", got)
	}
}
