package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// phase is where an engine is; the reason is its word in the operator's vocabulary.
type phase struct{ state, reason string }

var (
	checking   = phase{"Checking", "Starting"}
	starting   = phase{"Starting", "Starting"}
	generating = phase{"GeneratingToken", "Starting"}
	ready      = phase{"Ready", "Ready"}
	unhealthy  = phase{"Unhealthy", "EngineFailed"}
	draining   = phase{"Draining", "Deleting"}
	failed     = phase{"Failed", "EngineFailed"}
)

// status is what the report port tells of the engine.
type status struct {
	mu       sync.Mutex
	phase    phase
	message  string
	artifact artifact
	device   map[string]any
	seconds  map[string]float64
	alive    bool
	// starts counts the engine's starts in this pod, probes the tokens that were asked for by how that ended.
	starts     int
	probes     map[string]int
	probeTook  time.Duration
	progressed time.Time
	version    string

	begun  time.Time
	notes  *engineNotes
	prober *prober
}

func newStatus(prober *prober, notes *engineNotes) *status {
	return &status{
		phase: checking, message: "checking the artifact and the devices", alive: true, begun: time.Now(), prober: prober,
		notes: notes, seconds: map[string]float64{}, device: map[string]any{}, probes: map[string]int{},
	}
}

// enter goes to another phase. Draining and Failed are final: a token that arrives late makes nothing ready again.
func (s *status) enter(next phase, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == failed || (s.phase == draining && next != failed) {
		return
	}
	s.phase, s.message = next, message
	switch next {
	case generating:
		s.seconds["start"] = seconds(time.Since(s.begun))
	case ready:
		s.seconds["ready"] = seconds(time.Since(s.begun))
	}
}

// explain changes the message of the phase.
func (s *status) explain(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == checking || s.phase == starting || s.phase == generating {
		s.message = message
	}
}

// isReady tells whether the engine has generated a token and nothing has ended that.
func (s *status) isReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == ready
}

func (s *status) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.message
}

func (s *status) checked(found artifact, device map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.artifact, s.device = found, device
}

// tellVersion keeps the version that the engine's server gave; empty for none.
func (s *status) tellVersion(version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version = version
}

// versions are those of the engine: what its server says, and what it has written itself.
func (s *status) versions(notes engineReport) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := map[string]string{}
	if s.version != "" {
		versions["engine"] = s.version
	}
	maps.Copy(versions, notes.Versions)
	return versions
}

func (s *status) dead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive = false
}

// readiness is the answer to "ready?", and why not. While the engine starts, it knows best what it is at.
type readiness struct {
	Ready   bool   `json:"ready"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (s *status) now(notes engineReport) readiness {
	s.mu.Lock()
	phase, message := s.phase, s.message
	s.mu.Unlock()
	if phase == ready {
		err := s.prober.healthy()
		// It may have begun to drain while we asked.
		s.mu.Lock()
		phase, message = s.phase, s.message
		s.mu.Unlock()
		if phase == ready && err != nil {
			phase, message = unhealthy, "the engine does not answer any more: "+err.Error()
		}
	}
	answer := readiness{Ready: phase == ready, State: phase.state, Reason: phase.reason, Message: message}
	if phase == starting || phase == generating || phase == unhealthy {
		if notes.Reason != "" {
			answer.Reason = notes.Reason
		}
		if notes.Message != "" {
			answer.Message = oneLine(notes.Message)
		}
	}
	return answer
}

// full is the whole report.
func (s *status) full() map[string]any {
	notes := s.notes.read()
	answer, running := s.now(notes), s.versions(notes)
	s.mu.Lock()
	defer s.mu.Unlock()
	device := maps.Clone(s.device)
	maps.Copy(device, notes.ObservedDevice)
	versions := map[string]string{}
	maps.Copy(versions, s.artifact.Versions)
	maps.Copy(versions, running)
	return map[string]any{
		"ready": answer.Ready, "state": answer.State, "reason": answer.Reason, "message": answer.Message,
		"observedDevice": device, "driver": notes.Driver, "versions": versions, "artifact": s.artifact,
		"seconds": maps.Clone(s.seconds),
	}
}

// serve answers on the report port until the process ends.
func (s *status) serve(port int) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /rma/v1/live", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		alive := s.alive
		s.mu.Unlock()
		respond(w, alive, map[string]any{"live": alive})
	})
	mux.HandleFunc("GET /rma/v1/ready", func(w http.ResponseWriter, _ *http.Request) {
		answer := s.now(s.notes.read())
		respond(w, answer.Ready, answer)
	})
	mux.HandleFunc("GET /rma/v1/report", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, true, s.full())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", metricsType)
		_, _ = w.Write(s.exposition(r.Context()))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	go func() {
		err := server.Serve(listener)
		warn("the report port is gone: %v", err)
	}()
	return nil
}

func respond(w http.ResponseWriter, ok bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(marshal(body), '\n'))
}

const maxNotesBytes = 64 << 10

// engineReport is what an engine that knows the contract writes to $RMA_ENGINE_REPORT.
type engineReport struct {
	Reason         string            `json:"reason"`
	Message        string            `json:"message"`
	Driver         string            `json:"driver"`
	Versions       map[string]string `json:"versions"`
	ObservedDevice map[string]any    `json:"observedDevice"`
	// Drains: after SIGTERM it refuses what is new and ends when what was begun is done.
	Drains bool `json:"drains"`
}

// engineNotes reads the engine's file. It keeps what it read last: an engine may be in the middle of writing.
type engineNotes struct {
	path string

	mu      sync.Mutex
	last    engineReport
	problem error
}

// newEngineNotes removes what an engine of this pod's past left; its volume outlives a container.
func newEngineNotes(path string) *engineNotes {
	if path != "" {
		_ = os.Remove(path)
	}
	return &engineNotes{path: path}
}

func (n *engineNotes) read() engineReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.path == "" {
		return n.last
	}
	text, err := readLimited(n.path, maxNotesBytes)
	if err != nil {
		return n.last // not written yet
	}
	var found engineReport
	if n.problem = json.Unmarshal(text, &found); n.problem == nil {
		n.last = found
	}
	return n.last
}

// final reads for the last time; what cannot be read now never will be.
func (n *engineNotes) final() engineReport {
	found := n.read()
	if n.problem != nil {
		warn("%s is not a report of an engine: %v", n.path, n.problem)
	}
	return found
}
