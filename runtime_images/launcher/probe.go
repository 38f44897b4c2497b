package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	healthTimeout  = time.Second
	healthCacheFor = time.Second
	// A first token may wait for kernels to be compiled; an attempt that takes longer is given up and made again.
	tokenTimeout   = 5 * time.Minute
	firstProbeWait = 50 * time.Millisecond
	lastProbeWait  = time.Second
	maxAnswerBytes = 1 << 20
)

// prober asks the engine in this pod.
type prober struct {
	base       string
	servedName string
	client     *http.Client

	mu         sync.Mutex
	healthPath string
	checkedAt  time.Time
	problem    error
	// settled is the question that the engine has answered; nil until then.
	settled *question
}

func newProber(port int, servedName string) *prober {
	loopback := func(ctx context.Context, network, address string) (net.Conn, error) {
		var dialer net.Dialer
		connection, err := dialer.DialContext(ctx, "tcp4", address)
		if err != nil {
			// An engine that listens on IPv6 only.
			if six, failed := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port))); failed == nil {
				return six, nil
			}
		}
		return connection, err
	}
	return &prober{
		base:       fmt.Sprintf("http://127.0.0.1:%d", port),
		servedName: servedName,
		// No proxy: the environment's is for the engine's own downloads.
		client: &http.Client{
			Transport:     &http.Transport{DialContext: loopback, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// retry tries until it succeeds or ctx ends, and tells of every failure.
func retry(ctx context.Context, try func(context.Context) error, failing func(error)) error {
	for wait := firstProbeWait; ; wait = min(wait*3/2, lastProbeWait) {
		err := try(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		failing(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// untilToken tries until the engine has generated a token or ctx ends. answered is called once its server answers,
// failing with every problem that is not the same as the last.
func (p *prober) untilToken(ctx context.Context, answered func(), failing func(error)) error {
	if err := retry(ctx, p.findHealth, failing); err != nil {
		return err
	}
	answered()
	return retry(ctx, p.generate, failing)
}

// findHealth asks /health, and /v1/models of an engine that has no /health.
func (p *prober) findHealth(ctx context.Context) error {
	status, err := p.get(ctx, "/health")
	path := "/health"
	if err != nil && status == http.StatusNotFound {
		path = "/v1/models"
		_, err = p.get(ctx, path)
	}
	if err == nil {
		p.mu.Lock()
		p.healthPath = path
		p.mu.Unlock()
	}
	return err
}

// healthy is the engine's health now, or at most a second ago.
func (p *prober) healthy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.checkedAt) > healthCacheFor {
		_, p.problem = p.get(context.Background(), p.healthPath)
		p.checkedAt = time.Now()
	}
	return p.problem
}

func (p *prober) get(ctx context.Context, path string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path, nil)
	if err != nil {
		return 0, err
	}
	status, _, err = p.do(request)
	return status, err
}

// do gives the answer's body, and an error for any status but 200.
func (p *prober) do(request *http.Request) (status int, body []byte, err error) {
	what := request.Method + " " + request.URL.Path
	response, err := p.client.Do(request)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return 0, nil, fmt.Errorf("%s does not answer in time", what)
		}
		return 0, nil, fmt.Errorf("%s: %w", what, errors.Unwrap(err))
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return response.StatusCode, nil, fmt.Errorf("%s broke off: %w", what, err)
	}
	if response.StatusCode != http.StatusOK {
		return response.StatusCode, nil, fmt.Errorf("%s answered %d: %s", what, response.StatusCode, cut(oneLine(string(body)), 200))
	}
	return response.StatusCode, body, nil
}

// generate has the engine compute the least that shows that model, device and runtime work together.
func (p *prober) generate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	_, err := p.compute(ctx)
	return err
}

// tokenUsage is what a completion came to, in tokens; 0 where the engine does not say.
type tokenUsage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
}

// complete posts a completion, and makes sure that a token was generated. status is 0 where there was no answer.
func (p *prober) complete(ctx context.Context, body map[string]any) (told tokenUsage, status int, err error) {
	status, answer, err := p.post(ctx, completionPath, body)
	if err != nil {
		return told, status, err
	}
	told, err = readCompletion(completionPath, answer)
	return told, status, err
}

func (p *prober) post(ctx context.Context, path string, body map[string]any) (status int, answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.base+path, bytes.NewReader(marshal(body)))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	return p.do(request)
}

// firstModel is the name of the model that the engine serves, the first one if there are several.
func (p *prober) firstModel(ctx context.Context) (name string, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	const path = "/v1/models"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path, nil)
	if err != nil {
		return "", 0, err
	}
	status, answer, err := p.do(request)
	if err != nil {
		return "", status, err
	}
	var models struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(answer, &models); err != nil || len(models.Data) == 0 || models.Data[0].ID == "" {
		return "", status, fmt.Errorf("GET %s names no model: %s", path, cut(oneLine(string(answer)), 200))
	}
	return models.Data[0].ID, status, nil
}

// version is what the engine's server says of itself at /version, as vLLM's and others do; empty where it does not.
func (p *prober) version(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/version", nil)
	if err != nil {
		return ""
	}
	_, answer, err := p.do(request)
	var said struct {
		Version string `json:"version"`
	}
	if err != nil || json.Unmarshal(answer, &said) != nil {
		return ""
	}
	return cut(oneLine(said.Version), maxVersionBytes)
}
