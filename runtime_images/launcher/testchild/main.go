// Command testchild is what the launcher's tests run as a vendor's program: it does what its arguments say, in order,
// in an image that may hold nothing else.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	for _, argument := range os.Args[1:] {
		name, value, _ := strings.Cut(argument, "=")
		action, known := actions[name]
		if !known {
			fail("no action %q", name)
		}
		action(value)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testchild: "+format+"\n", args...)
	os.Exit(99)
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	must(err)
	return value
}

var actions map[string]func(string)

func init() {
	actions = map[string]func(string){
		"out":  func(text string) { fmt.Println(text) },
		"err":  func(text string) { fmt.Fprintln(os.Stderr, text) },
		"raw":  func(text string) { unquoted, err := strconv.Unquote(`"` + text + `"`); must(err); fmt.Print(unquoted) },
		"exit": func(code string) { os.Exit(number(code)) },
		"env":  func(name string) { fmt.Println(os.Getenv(name)) },
		"sleep": func(text string) {
			length, err := time.ParseDuration(text)
			must(err)
			time.Sleep(length)
		},
		"write": func(text string) {
			path, content, _ := strings.Cut(text, ":")
			must(os.WriteFile(path, []byte(content), 0o644))
		},
		"mkdir":  func(path string) { must(os.MkdirAll(path, 0o755)) },
		"report": func(text string) { must(os.WriteFile(os.Getenv("RMA_TERMINATION_LOG"), []byte(text), 0o644)) },
		"raise": func(which string) {
			must(syscall.Kill(os.Getpid(), syscall.Signal(number(which))))
			select {}
		},
		"lines":  manyLines,
		"alloc":  allocate,
		"spawn":  spawn,
		"join":   join,
		"orphan": orphan,
		"trap":   trap,
		"count":  countProcesses,
		"flags":  descriptorFlags,
		"serve":  serve,
	}
}

// manyLines=N prints N lines of 100 bytes.
func manyLines(text string) {
	line := append(bytes.Repeat([]byte{'x'}, 99), '\n')
	block := bytes.Repeat(line, 1000)
	for left := number(text); left > 0; left -= 1000 {
		_, err := os.Stdout.Write(block[:min(left, 1000)*100])
		must(err)
	}
}

// allocate=MIB takes memory and touches it.
func allocate(text string) {
	var held [][]byte
	for range number(text) {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
	}
	fmt.Println(len(held))
}

func self(arguments ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", arguments...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command
}

// spawn=ACTION,… leaves a process of the same group that does the actions, and tells its process id.
func spawn(text string) {
	command := self(strings.Split(text, ",")...)
	must(command.Start())
	fmt.Println("spawned", command.Process.Pid)
	spawned = append(spawned, command)
}

var spawned []*exec.Cmd

// join waits for what was spawned, however it ends.
func join(string) {
	for _, command := range spawned {
		_ = command.Wait()
	}
}

// orphan=N:DURATION makes N processes whose parent ends at once and which live that long; it returns when all are orphans.
func orphan(text string) {
	count, length, _ := strings.Cut(text, ":")
	for range number(count) {
		must(self("spawn=sleep=" + length).Run())
	}
}

// trap=SIGNAL waits for a signal.
func trap(text string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.Signal(number(text)))
	fmt.Println("trapping")
	fmt.Println("caught", int((<-signals).(syscall.Signal)))
}

// countProcesses waits until no zombie is left in /proc and prints the processes that there are.
func countProcesses(string) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		entries, err := os.ReadDir("/proc")
		must(err)
		zombies, all := 0, 0
		for _, entry := range entries {
			if _, err := strconv.Atoi(entry.Name()); err != nil {
				continue
			}
			stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
			if err != nil {
				continue
			}
			all++
			if _, state, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(state, "Z") {
				zombies++
			}
		}
		if (zombies == 0 && all == 2) || time.Now().After(deadline) {
			fmt.Printf("processes %d zombies %d pid %d ppid %d\n", all, zombies, os.Getpid(), os.Getppid())
			return
		}
	}
}

// descriptorFlags tells whether the standard streams block, as programs expect.
func descriptorFlags(string) {
	for descriptor := range uintptr(3) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, descriptor, syscall.F_GETFL, 0)
		fmt.Printf("descriptor %d nonblocking %v %v\n", descriptor, flags&syscall.O_NONBLOCK != 0, errno == 0)
	}
}

// behaviour is what the engine does; it is read from a file at every request, so that a test can change it.
type behaviour struct {
	Health     int    // status of GET /health
	Models     int    // status of GET /v1/models
	Completion string // token, text, empty, nochoice, error, garbage, loading, busy, hang, hang after one, absent or refused
	Chat       string // answer of POST /v1/chat/completions; 404 where it is empty
	Embedding  string // answer of POST /v1/embeddings; 404 where it is empty
	Metrics    string // answer of GET /metrics, in which N is the number of the request; 404 where it is empty
	Slow       string // how long /health takes
}

// serve=PORT,FILE is an engine with an OpenAI API. SIGUSR1 crashes it. After SIGTERM it drains until FILE.drained holds the
// exit code, at most half a minute.
func serve(text string) {
	port, file, _ := strings.Cut(text, ",")
	current := func() behaviour {
		b := behaviour{Health: 200, Models: 200, Completion: "token"}
		content, err := os.ReadFile(file)
		if err == nil && len(content) > 0 {
			must(json.Unmarshal(content, &b))
		}
		return b
	}
	http.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		b := current()
		if b.Slow != "" {
			length, err := time.ParseDuration(b.Slow)
			must(err)
			time.Sleep(length)
		}
		w.WriteHeader(b.Health)
	})
	http.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(current().Models)
		fmt.Fprintf(w, `{"object":"list","data":[{"id":%q}]}`, os.Getenv("EXPECTED_MODEL"))
	})
	var scrapes atomic.Int64
	http.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		text := current().Metrics
		if text == "" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, strings.ReplaceAll(text, "N", strconv.FormatInt(scrapes.Add(1), 10)))
	})
	var completions atomic.Int64
	http.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) {
		var request map[string]any
		must(json.NewDecoder(r.Body).Decode(&request))
		if request["model"] != os.Getenv("EXPECTED_MODEL") || (request["ignore_eos"] == nil && request["max_tokens"] != 1.0) {
			http.Error(w, fmt.Sprintf("no model %v here", request["model"]), http.StatusNotFound)
			return
		}
		answer := current().Completion
		if answer == "hang after one" {
			if answer = "hang"; completions.Add(1) == 1 {
				answer = "token"
			}
		}
		switch answer {
		case "token":
			fmt.Fprint(w, `{"choices":[{"text":""}],"usage":{"completion_tokens":1}}`)
		case "text":
			fmt.Fprint(w, `{"choices":[{"text":"a"}]}`)
		case "empty":
			fmt.Fprint(w, `{"choices":[{"text":""}],"usage":{"completion_tokens":0}}`)
		case "nochoice":
			fmt.Fprint(w, `{"choices":[],"usage":{"completion_tokens":1}}`)
		case "garbage":
			fmt.Fprint(w, "<html>")
		case "hang":
			<-r.Context().Done()
		case "busy":
			http.Error(w, "the queue is full", http.StatusTooManyRequests)
		case "absent":
			http.NotFound(w, r)
		case "refused":
			http.Error(w, "only chats here", http.StatusMethodNotAllowed)
		case "loading":
			http.Error(w, "the model is being loaded", http.StatusServiceUnavailable)
		default:
			http.Error(w, answer, http.StatusInternalServerError)
		}
	})
	for path, answer := range map[string]func(behaviour) string{
		"/v1/chat/completions": func(b behaviour) string { return b.Chat },
		"/v1/embeddings":       func(b behaviour) string { return b.Embedding },
	} {
		http.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			text := answer(current())
			switch {
			case text == "":
				http.NotFound(w, r)
			case text == "hang":
				<-r.Context().Done()
			default:
				fmt.Fprint(w, text)
			}
		})
	}
	go func() { must(http.ListenAndServe("127.0.0.1:"+port, nil)) }()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	if which := <-signals; which == syscall.SIGUSR1 {
		fmt.Fprintln(os.Stderr, "RuntimeError: device lost")
		os.Exit(1)
	}
	fmt.Println("draining")
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if content, err := os.ReadFile(file + ".drained"); err == nil {
			fmt.Println("drained")
			os.Exit(number(strings.TrimSpace(string(content))))
		}
	}
}
