package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

const completionPath = "/v1/completions"

// question is a request that costs an engine little, and that it can only answer by computing.
type question struct {
	path string
	// result is what its answer is called among the probes, does what an engine does that has answered.
	result, does string
	body         func(model string) map[string]any
	// check refuses an answer for which nothing was computed.
	check func(path string, answer []byte) error
}

// questions are put in this order until one is for the engine: not all of them complete, and some generate nothing.
var questions = []question{
	{
		completionPath, "token", "generates tokens",
		func(model string) map[string]any {
			return map[string]any{"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
		},
		checkCompletion,
	},
	{
		"/v1/chat/completions", "token", "generates tokens",
		func(model string) map[string]any {
			said := []map[string]any{{"role": "user", "content": "Hello"}}
			return map[string]any{"model": model, "messages": said, "max_tokens": 1}
		},
		checkCompletion,
	},
	{
		"/v1/embeddings", "embedding", "computes embeddings",
		func(model string) map[string]any { return map[string]any{"model": model, "input": "Hello"} },
		checkEmbedding,
	},
}

// asked is the question that the engine is asked, as far as that is known.
func (p *prober) asked() question {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled != nil {
		return *p.settled
	}
	return questions[0]
}

// compute has the engine answer the question that is for it. One that it does not know is not asked again, once it has
// answered another; where it knows none, what it said to the first is the error.
func (p *prober) compute(ctx context.Context) (status int, err error) {
	p.mu.Lock()
	settled := p.settled
	p.mu.Unlock()
	if settled != nil {
		return p.put(ctx, *settled)
	}
	for index := range questions {
		got, problem := p.put(ctx, questions[index])
		if got != http.StatusNotFound && got != http.StatusMethodNotAllowed {
			if problem == nil {
				p.mu.Lock()
				p.settled = &questions[index]
				p.mu.Unlock()
			}
			return got, problem
		}
		if err == nil {
			status, err = got, problem
		}
	}
	return status, err
}

func (p *prober) put(ctx context.Context, q question) (status int, err error) {
	status, answer, err := p.post(ctx, q.path, q.body(p.servedName))
	if err == nil {
		err = q.check(q.path, answer)
	}
	return status, err
}

func checkCompletion(path string, answer []byte) error {
	_, err := readCompletion(path, answer)
	return err
}

// readCompletion makes sure that a completion, of a chat or not, has a token.
func readCompletion(path string, answer []byte) (tokenUsage, error) {
	var completion struct {
		Choices []struct {
			Text    string `json:"text"`
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
		Usage tokenUsage `json:"usage"`
	}
	if err := json.Unmarshal(answer, &completion); err != nil {
		return tokenUsage{}, fmt.Errorf("POST %s answered no completion: %w", path, err)
	}
	told := completion.Usage
	if len(completion.Choices) == 0 {
		return told, fmt.Errorf("POST %s answered without a choice: %s", path, cut(oneLine(string(answer)), 200))
	}
	said := completion.Choices[0].Text + completion.Choices[0].Message.Content
	if told.CompletionTokens < 1 && strings.TrimSpace(said) == "" {
		return told, fmt.Errorf("POST %s generated no token: %s", path, cut(oneLine(string(answer)), 200))
	}
	return told, nil
}

// checkEmbedding makes sure that there is an embedding; nothing but zeros is none.
func checkEmbedding(path string, answer []byte) error {
	var found struct {
		Data []struct {
			Embedding []float64 `json:"embedding"`
		} `json:"data"`
	}
	if err := json.Unmarshal(answer, &found); err != nil {
		return fmt.Errorf("POST %s answered no embedding: %w", path, err)
	}
	for _, each := range found.Data {
		for _, number := range each.Embedding {
			if number != 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("POST %s computed no embedding: %s", path, cut(oneLine(string(answer)), 200))
}
