package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// countingEngine is an OpenAI server that counts tokens in its own way, and takes so many at most.
type countingEngine struct {
	tokens  func(prompt string) int
	longest int
	strict  bool // refuses what is not of OpenAI's API
	gate    *sync.WaitGroup

	mu      sync.Mutex
	longer  int
	answers map[int]int
	prompts map[string]int
}

func (e *countingEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/health":
		return
	case "/v1/models":
		fmt.Fprint(w, `{"data":[{"id":"m"},{"id":"lora"}]}`)
		return
	}
	var request struct {
		Model     string `json:"model"`
		Prompt    string `json:"prompt"`
		MaxTokens int    `json:"max_tokens"`
		IgnoreEOS *bool  `json:"ignore_eos"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Model != "m" {
		http.Error(w, "what is this", http.StatusNotFound)
		return
	}
	if e.strict && request.IgnoreEOS != nil {
		http.Error(w, "unknown field ignore_eos", http.StatusUnprocessableEntity)
		return
	}
	prompt := e.tokens(request.Prompt)
	if prompt+request.MaxTokens > e.longest {
		http.Error(w, "too long", http.StatusBadRequest)
		return
	}
	if e.gate != nil && request.Prompt != promptWord {
		e.gate.Done()
		e.gate.Wait()
	}
	e.mu.Lock()
	e.longer = max(e.longer, prompt+request.MaxTokens)
	e.answers[request.MaxTokens]++
	e.prompts[request.Prompt]++
	e.mu.Unlock()
	fmt.Fprintf(w, `{"choices":[{"text":"x"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}`, prompt, request.MaxTokens)
}

func warmAt(t *testing.T, engine *countingEngine, w warmer) (facts, error) {
	t.Helper()
	engine.answers, engine.prompts = map[int]int{}, map[string]int{}
	server := httptest.NewServer(engine)
	defer server.Close()
	address, _ := url.Parse(server.URL)
	port, _ := strconv.Atoi(address.Port())
	found := facts{}
	w.prober, w.facts, w.timeout = newProber(port, ""), &found, time.Minute
	return found, w.warm(context.Background())
}

func TestWarmFillsTheSequenceWhateverAWordIs(t *testing.T) {
	words := func(prompt string) int { return len(strings.Fields(prompt)) }
	for name, tokens := range map[string]func(string) int{
		"a word is a token":             words,
		"and one begins the text":       func(prompt string) int { return 1 + words(prompt) },
		"bytes, with blanks between":    func(prompt string) int { return len(prompt) },
		"bytes":                         func(prompt string) int { return 1 + len(prompt) },
		"words are shorter in a row":    func(prompt string) int { return 3 + (words(prompt)+1)/2 },
		"words are longer in a row":     func(prompt string) int { return words(prompt) * (1 + min(1, words(prompt)/10)) },
		"a template of many tokens":     func(prompt string) int { return 40 + words(prompt) },
		"a third of a token for a word": func(prompt string) int { return 2 + words(prompt)/3 },
	} {
		for _, sequence := range []int{64, 100, 128, 1000, 4096, 100000} {
			for _, strict := range []bool{false, true} {
				engine := &countingEngine{tokens: tokens, longest: sequence, strict: strict}
				found, err := warmAt(t, engine, warmer{sequence: sequence})
				if err != nil || engine.longer != sequence {
					t.Errorf("%s, %d: %d tokens at most, %v", name, sequence, engine.longer, err)
				}
				if _, told := found.BucketSeconds["sequence="+strconv.Itoa(sequence)]; !told || len(found.BucketSeconds) != 1 {
					t.Errorf("%s, %d: %+v", name, sequence, found)
				}
				// An answer is short: the long prompt is what a sequence is warmed up for.
				for answer := range engine.answers {
					if answer > max(answerTokens, sequence/8)+8 {
						t.Errorf("%s, %d: an answer of %d tokens", name, sequence, answer)
					}
				}
			}
		}
	}
}

func TestWarmSaysWhyItCannot(t *testing.T) {
	one := func(string) int { return 1 }
	for name, row := range map[string]struct {
		engine *countingEngine
		warmer warmer
		says   string
	}{
		"a length that does not grow": {&countingEngine{tokens: one, longest: 1000}, warmer{sequence: 64}, "1 words have 1 tokens, and 56 words 1"},
		"no usage":                    {&countingEngine{tokens: func(string) int { return 0 }, longest: 1000}, warmer{sequence: 64}, "tell no usage"},
		"too small":                   {&countingEngine{tokens: func(string) int { return 9 }, longest: 10}, warmer{sequence: 8}, "a prompt of one word has 9 tokens"},
		"no room at all":              {&countingEngine{tokens: one, longest: 1}, warmer{}, "does not complete: POST /v1/completions answered 400: too long"},
		"longer than the engine":      {&countingEngine{tokens: func(p string) int { return len(p) }, longest: 100}, warmer{sequence: 200}, "tokens was found: POST /v1/completions answered 400: too long"},
	} {
		_, err := warmAt(t, row.engine, row.warmer)
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarmAsksForAWholeBatchAtOnce(t *testing.T) {
	const batch = 24
	engine := &countingEngine{tokens: func(prompt string) int { return len(prompt) }, longest: 64, gate: &sync.WaitGroup{}}
	engine.gate.Add(batch) // nobody is answered before everybody has asked
	found, err := warmAt(t, engine, warmer{batch: batch, sequence: 0})
	if err != nil || engine.answers[answerTokens] != batch || len(engine.prompts) != batch+1 {
		t.Errorf("%v %v %v", err, engine.answers, engine.prompts)
	}
	if len(found.BucketSeconds) != 1 {
		t.Errorf("%+v", found)
	}
}

func TestWarmEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := warmer{prober: newProber(1, ""), timeout: time.Minute, facts: &facts{}}
	if err := w.warm(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
