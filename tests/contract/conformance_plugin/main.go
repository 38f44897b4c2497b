// A device plugin in another language than ours, over devices that are files, with one defect on demand.
//
//	conformance-plugin init   -state DIR
//	conformance-plugin serve  -state DIR -dir KUBELET_DIR -resource NAME [-defect NAME]
//	conformance-plugin inject -state DIR ACTION [DEVICE]
//
// Without a defect it keeps every rule of the conformance suite. Each defect breaks one.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const notOffered = 3

func main() {
	if len(os.Args) < 2 {
		fail(64, "init, serve or inject?")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	state := flags.String("state", "", "the directory that stands for the hardware")
	dir := flags.String("dir", "", "the kubelet's directory")
	resource := flags.String("resource", "", "resource name")
	defect := flags.String("defect", "", "what to do wrong")
	_ = flags.Parse(os.Args[2:])
	hardware := hardware{*state}
	switch os.Args[1] {
	case "init":
		hardware.create()
	case "inject":
		if !hardware.inject(flags.Arg(0), flags.Arg(1)) {
			os.Exit(notOffered)
		}
	case "serve":
		go endWithParent(os.Getppid())
		newPlugin(hardware, *dir, *resource, *defect).run()
	default:
		fail(64, "init, serve or inject?")
	}
}

// endWithParent ends the process, whatever else it does, once the one that started it is gone.
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(100 * time.Millisecond)
	}
	os.Exit(1)
}

func fail(code int, format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(code)
}

// hardware is a directory: dev/CARD are the device files, flags/NAME are states, mode is what the driver does.
type hardware struct{ root string }

var cards = []string{"card0", "card1", "card2"}
var replicas = []string{"a", "b"}

// numa puts the first card on a node of its own.
func numa(card string) int64 {
	if card == cards[0] {
		return 0
	}
	return 1
}

// cardOf is the hardware behind an ID such as card0-a.
func cardOf(id string) string { return id[strings.Index(id, "card"):][:len("card0")] }

func (h hardware) node(card string) string { return filepath.Join(h.root, "dev", card) }
func (h hardware) flag(name string) string { return filepath.Join(h.root, "flags", name) }
func (h hardware) has(name string) bool    { _, err := os.Stat(h.flag(name)); return err == nil }

func (h hardware) create() {
	for _, directory := range []string{"dev", "flags"} {
		must(os.MkdirAll(filepath.Join(h.root, directory), 0o755))
	}
	for _, card := range cards {
		must(os.WriteFile(h.node(card), nil, 0o644))
	}
	h.setMode("ok")
}

func (h hardware) setMode(mode string) {
	temporary := filepath.Join(h.root, fmt.Sprintf("mode.%d", os.Getpid()))
	must(os.WriteFile(temporary, []byte(mode), 0o644))
	must(os.Rename(temporary, filepath.Join(h.root, "mode")))
}

func (h hardware) mode() string {
	text, err := os.ReadFile(filepath.Join(h.root, "mode"))
	must(err)
	return string(text)
}

// query is the vendor's library: the IDs that it lists, with their health.
func (h hardware) query(defect string) (map[string]bool, error) {
	for h.mode() == "hang" {
		time.Sleep(5 * time.Millisecond)
	}
	mode := h.mode()
	switch {
	case mode == "fail":
		return nil, fmt.Errorf("the driver does not answer")
	case mode == "garbage" && defect == "crashes-on-garbage":
		fail(2, "panic: index out of range")
	case mode == "garbage":
		return nil, fmt.Errorf("the driver's answer makes no sense")
	}
	listed := map[string]bool{}
	if h.has("none") {
		return listed, nil
	}
	for _, card := range cards {
		for _, replica := range replicas {
			id := card + "-" + replica
			if mode == "partial "+id || (h.has("removed-"+card) && defect != "removed-stays-healthy") {
				continue
			}
			listed[id] = h.well(card, id, defect)
		}
	}
	return listed, nil
}

func (h hardware) well(card, id, defect string) bool {
	if defect == "ignores-health" {
		return true
	}
	if defect == "busy-is-unhealthy" && h.has("busy-"+id) {
		return false
	}
	if defect == "fails-all" {
		return !h.anyFailed()
	}
	if defect == "one-replica" {
		return !h.has("failed-" + id)
	}
	for _, replica := range replicas {
		if h.has("failed-" + card + "-" + replica) {
			return false
		}
	}
	return true
}

func (h hardware) anyFailed() bool {
	failed, _ := filepath.Glob(h.flag("failed-*"))
	return len(failed) > 0
}

// inject does what can happen to devices; false for what it does not know.
func (h hardware) inject(action, id string) bool {
	on := map[string]string{"fail": "failed-", "busy": "busy-", "allocate-hang": "stuck-"}
	off := map[string]string{"recover": "failed-", "idle": "busy-", "allocate-ok": "stuck-"}
	if id != "" {
		id = id[strings.Index(id, "card"):]
	}
	switch {
	case on[action] != "":
		h.raise(on[action] + id)
	case off[action] != "":
		h.lower(off[action] + id)
	case action == "remove":
		h.raise("removed-" + cardOf(id))
	case action == "add":
		h.lower("removed-" + cardOf(id))
	case action == "node-remove":
		must(os.Remove(h.node(cardOf(id))))
	case action == "node-restore":
		must(os.WriteFile(h.node(cardOf(id)), nil, 0o644))
	case action == "no-devices":
		h.raise("none")
	case action == "all-devices":
		h.lower("none")
	case action == "tool-partial":
		h.setMode("partial " + id)
	case strings.HasPrefix(action, "tool-"):
		h.setMode(strings.TrimPrefix(action, "tool-"))
	case action == "reload":
		h.raise("reload")
	case action == "flap":
		for range 20 {
			h.raise("failed-" + id)
			time.Sleep(25 * time.Millisecond)
			h.lower("failed-" + id)
			time.Sleep(25 * time.Millisecond)
		}
	default:
		return false
	}
	return true
}

func (h hardware) raise(name string) { must(os.WriteFile(h.flag(name), nil, 0o644)) }
func (h hardware) lower(name string) { must(os.RemoveAll(h.flag(name))) }

func must(err error) {
	if err != nil {
		fail(1, "%v", err)
	}
}
