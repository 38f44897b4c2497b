package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// An answer of this many tokens goes through the engine's loop often enough for everything in it to be used.
	answerTokens = 32
	// promptTries bounds the search for a prompt of the wanted length; two are enough where a word is always as long.
	promptTries = 12
	promptWord  = "hello"
)

// warmer asks an engine for each bucket.
type warmer struct {
	prober   *prober
	sequence int
	batch    int
	// timeout is for the engine to get ready, and for each bucket.
	timeout time.Duration
	facts   *facts

	model string
	// endless: the engine can be told not to end its answer before the limit.
	endless bool
}

// warm returns when every bucket was used, or with what is the matter; with ctx's error once that is done.
func (w *warmer) warm(ctx context.Context) error {
	begun := time.Now()
	if err := w.untilReady(ctx); err != nil {
		return w.because(ctx, err)
	}
	w.facts.ReadySeconds = seconds(time.Since(begun))
	info("warmup: the engine answered after %v", time.Since(begun).Round(time.Millisecond))
	w.facts.BucketSeconds = map[string]float64{}
	for _, bucket := range []struct {
		name string
		size int
		use  func(context.Context) error
	}{{"sequence", w.sequence, w.useSequence}, {"batch", w.batch, w.useBatch}} {
		if bucket.size == 0 {
			continue
		}
		name := fmt.Sprintf("%s=%d", bucket.name, bucket.size)
		begun := time.Now()
		limited, cancel := context.WithTimeout(ctx, w.timeout)
		err := bucket.use(limited)
		if err != nil && limited.Err() != nil {
			err = fmt.Errorf("it took more than %v; last: %w", w.timeout, err)
		}
		cancel()
		if err != nil {
			return w.because(ctx, fmt.Errorf("cannot be warmed up for %s: %w", name, err))
		}
		w.facts.BucketSeconds[name] = seconds(time.Since(begun))
		info("warmup: %s took %v", name, time.Since(begun).Round(time.Millisecond))
	}
	return nil
}

// because is why it could not go on: the end of ctx comes before anything that follows from it.
func (w *warmer) because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// untilReady waits until the engine has answered with a token.
func (w *warmer) untilReady(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	last := errors.New("nothing was asked yet")
	remember := func(err error) { last = err }
	// What no waiting changes.
	var refused error
	first := func(ctx context.Context) error {
		status, err := w.firstToken(ctx)
		if err != nil && status != 0 && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests {
			refused = err
			return nil
		}
		return err
	}
	err := retry(limited, w.prober.findHealth, remember)
	if err == nil {
		last = errors.New("its server answers, but generates no token")
		err = retry(limited, first, remember)
	}
	if err != nil {
		return fmt.Errorf("was not ready in %v; last: %w", w.timeout, last)
	}
	if refused != nil {
		return fmt.Errorf("does not complete: %w", refused)
	}
	return nil
}

// firstToken finds out which model there is and what the engine understands.
func (w *warmer) firstToken(ctx context.Context) (status int, err error) {
	if w.model == "" {
		if w.model, status, err = w.prober.firstModel(ctx); err != nil {
			return status, err
		}
	}
	w.endless = true
	_, status, err = w.ask(ctx, promptWord, 1)
	if status == http.StatusBadRequest || status == http.StatusUnprocessableEntity {
		// "ignore_eos" is not of OpenAI's API, though most engines have it.
		w.endless = false
		_, status, err = w.ask(ctx, promptWord, 1)
	}
	return status, err
}

// ask completes a prompt with that many tokens.
func (w *warmer) ask(ctx context.Context, prompt string, tokens int) (tokenUsage, int, error) {
	body := map[string]any{"model": w.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
	if w.endless {
		body["ignore_eos"] = true
	}
	told, status, err := w.prober.complete(ctx, body)
	if err != nil && (status == 0 || status == http.StatusOK) {
		// An engine that is dying breaks connections before it has ended: its end says more. Where it goes on, this
		// is what is the matter.
		_ = retry(ctx, w.prober.findHealth, func(error) {})
	}
	return told, status, err
}

// useSequence has prompt and answer come to the bucket's length, by the engine's own count.
func (w *warmer) useSequence(ctx context.Context) error {
	answer := max(1, min(answerTokens, w.sequence/8))
	wanted := w.sequence - answer
	words, length, err := w.fit(ctx, wanted)
	if err != nil {
		return err
	}
	told, _, err := w.ask(ctx, prompt(words), w.sequence-length)
	if err != nil {
		return err
	}
	info("warmup: %d tokens in the prompt and %d in the answer", told.PromptTokens, told.CompletionTokens)
	return nil
}

// fit finds how many words have at most wanted tokens, and nearly as many, and tells how many they have.
func (w *warmer) fit(ctx context.Context, wanted int) (words, length int, err error) {
	measure := func(words int) (int, int, error) {
		told, status, err := w.ask(ctx, prompt(words), 1)
		if err == nil && told.PromptTokens < 1 {
			err = errors.New("its completions tell no usage, so the length of a prompt cannot be known")
		}
		return told.PromptTokens, status, err
	}
	words = 1
	if length, _, err = measure(words); err != nil {
		return 0, 0, err
	}
	if length > wanted {
		return 0, 0, fmt.Errorf("a prompt of one word has %d tokens already", length)
	}
	// A guess that is mostly too high: a prompt of one word has what is around every prompt, too.
	perWord := float64(length)
	problem := errors.New("words of a prompt differ too much in length")
	for range promptTries {
		more := int(float64(wanted-length) / perWord)
		if more == 0 {
			return words, length, nil
		}
		longer, status, err := measure(words + more)
		switch {
		case status == http.StatusBadRequest && more > 1:
			// More tokens than the engine takes: words are longer than they seemed, or the engine takes fewer.
			problem = err
			perWord *= 2
			continue
		case err != nil:
			return 0, 0, err
		case longer <= length:
			return 0, 0, fmt.Errorf("%d words have %d tokens, and %d words %d", words, length, words+more, longer)
		}
		perWord = float64(longer-length) / float64(more)
		if longer <= wanted {
			words, length = words+more, longer
		}
	}
	if length < wanted-wanted/4 {
		return 0, 0, fmt.Errorf("no prompt of about %d tokens was found: %w", wanted, problem)
	}
	return words, length, nil
}

func prompt(words int) string {
	return strings.TrimSuffix(strings.Repeat(promptWord+" ", words), " ")
}

// useBatch has as many answers generated at once as the bucket takes.
func (w *warmer) useBatch(ctx context.Context) error {
	tokens := answerTokens
	if w.sequence > 0 {
		tokens = max(1, min(tokens, w.sequence/2))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var once sync.Once
	var first error
	var all sync.WaitGroup
	for number := range w.batch {
		all.Go(func() {
			// Prompts that begin alike would share what was computed for them.
			if _, _, err := w.ask(ctx, strconv.Itoa(number), tokens); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	all.Wait()
	return first
}
