package main

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

const (
	// longestLook is how often an engine is looked at that need not be looked at more often.
	longestLook = time.Minute
	idleLook    = 250 * time.Millisecond
)

// probed is how a generation ended that was asked to see whether the engine lives.
type probed struct {
	result string
	err    error
	took   time.Duration
}

// ask has the engine answer its question. One that refuses because it has too much to do is busy.
func (p *prober) ask(ctx context.Context, limit time.Duration) probed {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begun := time.Now()
	code, err := p.compute(ctx)
	result := p.asked().result
	switch {
	case err != nil && (code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable):
		result = "busy"
	case err != nil:
		result = "failed"
	}
	return probed{result, err, time.Since(begun)}
}

// untilHung watches an engine that was ready, and gives what is the matter once it has not got on for limit; nil when
// ctx ends before. An engine gets on while its counters of tokens move: a request of ours would only wait with all the
// others. Where they stand still, or there are none, it has to generate a token for us.
func (s *status) untilHung(ctx context.Context, limit time.Duration) error {
	s.progress()
	last, _ := s.prober.metrics(ctx)
	var asked chan probed
	problem := fmt.Sprintf("POST %s has not answered", s.prober.asked().path)
	ticker := time.NewTicker(min(longestLook, limit/4))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case answer := <-asked:
			asked = nil
			s.probed(answer)
			if answer.err != nil {
				problem = answer.err.Error()
			}
			if answer.err == nil || (answer.result == "busy" && !last.counted) {
				s.progress()
			}
		case <-ticker.C:
			now, err := s.prober.metrics(ctx)
			moved := err == nil && now.counted && (!last.counted || now.tokens != last.tokens)
			if err == nil {
				last = now
			}
			switch {
			case moved:
				s.progress()
			case asked == nil:
				asked = make(chan probed, 1)
				go func(into chan<- probed) { into <- s.prober.ask(ctx, limit) }(asked)
			}
		}
		if age := s.progressAge(); age > limit && ctx.Err() == nil {
			said := "it tells no count of its tokens"
			if last.counted {
				said = "none of its counters of tokens moved"
			}
			return fmt.Errorf("the engine hangs: no token in %v and %s; last: %s", limit, said, problem)
		}
	}
}

// untilIdle waits until the engine says that nothing runs or waits; at once where it does not say.
func (p *prober) untilIdle(ctx context.Context) {
	for {
		now, err := p.metrics(ctx)
		if err != nil || !now.watched || now.requests == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(idleLook):
		}
	}
}

func (s *status) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progressed = time.Now()
}

func (s *status) progressAge() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.progressed)
}

func (s *status) probed(answer probed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes[answer.result]++
	if answer.err == nil {
		s.probeTook = answer.took
	}
}
