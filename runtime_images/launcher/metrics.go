package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	metricsTimeout  = 5 * time.Second
	maxMetricsBytes = 16 << 20
	metricsType     = "text/plain; version=0.0.4; charset=utf-8"
	startsFile      = "rma-launch.starts"
)

var (
	// tokenCounter is the name of a counter of tokens, whatever the engine: it moves while anything is computed.
	tokenCounter = regexp.MustCompile(`tokens?.*(?:_total|_count|_sum)$|tokens?_(?:processed|generated)$`)
	// requestGauge is the name of a gauge of requests that run or wait: of vLLM and those that took its names over,
	// of SGLang, and of TGI.
	requestGauge = regexp.MustCompile(
		`(?:^|[:_])num_requests_(?:running|waiting)$|(?:^|[:_])num_(?:running|queue)_reqs$|^tgi_(?:batch_current_size|queue_size)$`)
)

// engineMetrics is what the engine says of itself in Prometheus' text format.
type engineMetrics struct {
	text []byte
	// tokens is the sum of all counters of tokens; counted tells that there is one.
	tokens  float64
	counted bool
	// requests is how many run or wait; watched tells that the engine says so.
	requests float64
	watched  bool
}

// metrics asks the engine for its series.
func (p *prober) metrics(ctx context.Context) (engineMetrics, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/metrics", nil)
	if err != nil {
		return engineMetrics{}, err
	}
	request.Header.Set("Accept", "text/plain;version=0.0.4")
	response, err := p.client.Do(request)
	if err != nil {
		return engineMetrics{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxMetricsBytes+1))
	switch {
	case err != nil:
		return engineMetrics{}, err
	case response.StatusCode != http.StatusOK:
		return engineMetrics{}, fmt.Errorf("GET /metrics answered %d", response.StatusCode)
	case len(text) > maxMetricsBytes:
		return engineMetrics{}, fmt.Errorf("GET /metrics answered more than %d bytes", maxMetricsBytes)
	}
	return readMetrics(text)
}

// readMetrics takes what a scraper would; text that is no exposition is an error, and must not spoil ours.
func readMetrics(text []byte) (engineMetrics, error) {
	found := engineMetrics{}
	var kept bytes.Buffer
	for line := range bytes.Lines(text) {
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(bytes.TrimSpace(line)) == 0 || bytes.Equal(line, []byte("# EOF")):
			continue // ours come after it
		case line[0] != '#':
			name, value, err := parseSample(string(line))
			if err != nil {
				return engineMetrics{}, err
			}
			if tokenCounter.MatchString(name) {
				found.tokens, found.counted = found.tokens+value, true
			}
			if requestGauge.MatchString(name) {
				found.requests, found.watched = found.requests+value, true
			}
		}
		kept.Write(line)
		kept.WriteByte('\n')
	}
	found.text = kept.Bytes()
	return found, nil
}

// parseSample gives name and value of `name{label="value"} value [timestamp]`.
func parseSample(line string) (string, float64, error) {
	name, rest := line, ""
	if brace := strings.IndexByte(line, '{'); brace >= 0 {
		// A label's value may hold spaces and braces, but what follows the last brace is only numbers.
		end := strings.LastIndexByte(line, '}')
		if end < brace {
			return "", 0, fmt.Errorf("GET /metrics has the line %q, which is no sample", cut(line, 80))
		}
		name, rest = line[:brace], line[end+1:]
	} else if space := strings.IndexAny(line, " \t"); space >= 0 {
		name, rest = line[:space], line[space:]
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0, fmt.Errorf("GET /metrics has the line %q, which is no sample", cut(line, 80))
	}
	value, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		return "", 0, fmt.Errorf("GET /metrics has the line %q, whose value is no number", cut(line, 80))
	}
	return strings.TrimSpace(name), value, nil
}

// countStart counts the starts of the engine's container in this pod, in a file beside the engine's report: that volume
// outlives a container. It is 1 where there is no such volume.
func countStart(reportPath string) int {
	if reportPath == "" {
		return 1
	}
	path := filepath.Join(filepath.Dir(reportPath), startsFile)
	before, _ := readLimited(path, 32)
	starts, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil || starts < 0 {
		starts = 0
	}
	starts++
	if err := os.WriteFile(path, []byte(strconv.Itoa(starts)), 0o644); err != nil {
		warn("the starts of this pod cannot be counted: %v", err)
	}
	return starts
}

// exposition is the engine's series as they are, and ours after them.
func (s *status) exposition(ctx context.Context) []byte {
	engine, err := s.prober.metrics(ctx)
	ready := s.now(s.notes.read()).Ready
	s.mu.Lock()
	defer s.mu.Unlock()
	var out bytes.Buffer
	out.Write(engine.text)
	family := func(name, kind, help string, samples ...string) {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, sample := range samples {
			fmt.Fprintf(&out, "%s%s\n", name, sample)
		}
	}
	family("rma_ready", "gauge", "1 while the engine is ready: checked, and has generated a token.", oneIf(ready))
	var starts []string
	for _, stage := range []string{"start", "ready"} {
		if taken, known := s.seconds[stage]; known {
			starts = append(starts, fmt.Sprintf("{until=%q} %v", stage, taken))
		}
	}
	family("rma_start_seconds", "gauge", "Seconds until the engine's server answered (start) and generated a token (ready).", starts...)
	family("rma_engine_starts_total", "counter", "Starts of the engine's container in this pod.", fmt.Sprintf(" %d", s.starts))
	var probes []string
	for result, times := range s.probes {
		probes = append(probes, fmt.Sprintf("{result=%q} %d", result, times))
	}
	slices.Sort(probes)
	family("rma_probes_total", "counter", "Tokens, or embeddings, that were asked for to see whether the engine lives.", probes...)
	if s.probeTook > 0 {
		family("rma_probe_seconds", "gauge", "Seconds that the last one took that was answered.", fmt.Sprintf(" %v", s.probeTook.Seconds()))
	}
	if !s.progressed.IsZero() {
		family("rma_progress_age_seconds", "gauge", "Seconds since the engine was last seen to get on.", fmt.Sprintf(" %v", seconds(time.Since(s.progressed))))
	}
	family("rma_engine_metrics", "gauge", "1 if the engine's own series are above.", oneIf(err == nil))
	return out.Bytes()
}

func oneIf(holds bool) string {
	if holds {
		return " 1"
	}
	return " 0"
}
