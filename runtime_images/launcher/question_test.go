package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

const (
	aToken     = `{"choices":[{"text":"a"}]}`
	aReply     = `{"choices":[{"message":{"content":"a"}}]}`
	aThought   = `{"choices":[{"message":{"content":null}}],"usage":{"completion_tokens":1}}`
	anEmbedded = `{"data":[{"embedding":[0,0.5]}]}`
)

// An engine is asked what it can answer, and nothing else counts as an answer.
func TestQuestions(t *testing.T) {
	for _, row := range []struct {
		name    string
		answers map[string]string
		asked   string
		problem string
	}{
		{"completions", map[string]string{"/v1/completions": aToken, "/v1/chat/completions": aReply}, "/v1/completions", ""},
		{"chats only", map[string]string{"/v1/chat/completions": aReply}, "/v1/chat/completions", ""},
		{"a chat that thinks first", map[string]string{"/v1/chat/completions": aThought}, "/v1/chat/completions", ""},
		{"chats by another refusal", map[string]string{"/v1/completions": "405", "/v1/chat/completions": aReply}, "/v1/chat/completions", ""},
		{"embeddings", map[string]string{"/v1/embeddings": anEmbedded}, "/v1/embeddings", ""},
		{"embeddings beside refusals", map[string]string{"/v1/completions": "404", "/v1/chat/completions": "405", "/v1/embeddings": anEmbedded}, "/v1/embeddings", ""},
		{"nothing", map[string]string{"/v1/completions": "404"}, "", "POST /v1/completions answered 404"},
		{"a failure is no refusal", map[string]string{"/v1/completions": "500", "/v1/chat/completions": aReply}, "", "POST /v1/completions answered 500"},
		{"another model", map[string]string{"/v1/completions": "400", "/v1/embeddings": anEmbedded}, "", "POST /v1/completions answered 400"},
		{"no token in the chat", map[string]string{"/v1/chat/completions": `{"choices":[{"message":{}}]}`}, "", "POST /v1/chat/completions generated no token"},
		{"no choice in the chat", map[string]string{"/v1/chat/completions": `{"choices":[]}`}, "", "without a choice"},
		{"no chat", map[string]string{"/v1/chat/completions": "<html>"}, "", "POST /v1/chat/completions answered no completion"},
		{"nothing embedded", map[string]string{"/v1/embeddings": `{"data":[]}`}, "", "computed no embedding"},
		{"an empty embedding", map[string]string{"/v1/embeddings": `{"data":[{"embedding":[]}]}`}, "", "computed no embedding"},
		{"zeros", map[string]string{"/v1/embeddings": `{"data":[{"embedding":[0,0]}]}`}, "", "computed no embedding"},
		{"no numbers", map[string]string{"/v1/embeddings": `{"data":[{"embedding":["a"]}]}`}, "", "answered no embedding"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var last string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				last = r.URL.Path
				if text, _ := io.ReadAll(r.Body); !strings.Contains(string(text), `"model":"m"`) {
					t.Errorf("%s was asked %s", last, text)
				}
				answer, known := row.answers[r.URL.Path]
				if status, err := strconv.Atoi(answer); !known || err == nil {
					if !known {
						status = http.StatusNotFound
					}
					w.WriteHeader(status)
					return
				}
				_, _ = io.WriteString(w, answer)
			}))
			defer server.Close()
			where, _ := url.Parse(server.URL)
			port, _ := strconv.Atoi(where.Port())
			p := newProber(port, "m")
			err := p.generate(context.Background())
			if row.problem != "" {
				if err == nil || !strings.Contains(err.Error(), row.problem) {
					t.Fatalf("%v; want %q", err, row.problem)
				}
				return
			}
			if err != nil || last != row.asked || p.asked().path != row.asked {
				t.Fatalf("%v after %s, settled on %s; want %s", err, last, p.asked().path, row.asked)
			}
			// What it has answered once is what it is asked from now on, whatever else it may learn.
			row.answers["/v1/completions"] = aToken
			if err := p.generate(context.Background()); err != nil || last != row.asked {
				t.Errorf("then %v from %s", err, last)
			}
		})
	}
}
