package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// memoryGroup is the directory of the cgroup that limits our memory, version 1 or 2.
type memoryGroup string

// findMemoryGroup gives "" where no such cgroup can be seen. root is "/" but in tests.
func findMemoryGroup(root string) memoryGroup {
	groups, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	mounts, _ := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	for _, line := range strings.Split(string(mounts), "\n") {
		// … mount-ID parent-ID device ROOT MOUNTPOINT options [tags] - TYPE source SUPER-OPTIONS
		left, right, found := strings.Cut(line, " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !found || len(before) < 5 || len(after) < 3 {
			continue
		}
		controller := "memory"
		if after[0] == "cgroup2" {
			controller = ""
		} else if after[0] != "cgroup" || !contains(after[2], controller) {
			continue
		}
		mountRoot, mountPoint := before[3], filepath.Join(root, before[4])
		within, err := filepath.Rel(mountRoot, groupPath(string(groups), controller))
		if err != nil || strings.HasPrefix(within, "..") {
			within = "." // the container sees its own group as the root
		}
		for _, dir := range []string{filepath.Join(mountPoint, within), mountPoint} {
			if group := memoryGroup(dir); group.known() {
				return group
			}
		}
	}
	return ""
}

// groupPath is our path in the hierarchy of a controller ("" is version 2) according to /proc/self/cgroup.
func groupPath(groups, controller string) string {
	for _, line := range strings.Split(groups, "\n") {
		// hierarchy-ID:controllers:path
		parts := strings.SplitN(line, ":", 3)
		if len(parts) == 3 && (parts[1] == controller && controller == "" || controller != "" && contains(parts[1], controller)) {
			return parts[2]
		}
	}
	return "/"
}

func contains(list, item string) bool {
	for _, each := range strings.Split(list, ",") {
		if each == item {
			return true
		}
	}
	return false
}

func (g memoryGroup) known() bool {
	for _, name := range []string{"memory.events", "memory.oom_control", "memory.failcnt"} {
		if _, err := os.Stat(filepath.Join(string(g), name)); err == nil {
			return true
		}
	}
	return false
}

// memoryCounters are the kernel's counts; -1 for one that it does not keep.
type memoryCounters struct{ kills, limitHits int64 }

func (g memoryGroup) read() memoryCounters {
	counters := memoryCounters{kills: -1, limitHits: -1}
	if g == "" {
		return counters
	}
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		if kills, found := g.field(name, "oom_kill"); found {
			counters.kills = kills
			break
		}
	}
	if text, err := os.ReadFile(filepath.Join(string(g), "memory.failcnt")); err == nil {
		if hits, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			counters.limitHits = hits
		}
	}
	return counters
}

func (g memoryGroup) field(file, name string) (int64, bool) {
	opened, err := os.Open(filepath.Join(string(g), file))
	if err != nil {
		return 0, false
	}
	defer opened.Close()
	for scanner := bufio.NewScanner(opened); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) == 2 && fields[0] == name {
			value, err := strconv.ParseInt(fields[1], 10, 64)
			return value, err == nil
		}
	}
	return 0, false
}

// killedSince says that the kernel killed for memory since before; empty if it did not. Kernels before 4.13 count no
// kills in version 1: there a SIGKILL counts if the limit was hit meanwhile.
func (g memoryGroup) killedSince(before memoryCounters, signal syscall.Signal) string {
	now := g.read()
	killed := before.kills >= 0 && now.kills > before.kills
	if before.kills < 0 {
		killed = signal == syscall.SIGKILL && before.limitHits >= 0 && now.limitHits > before.limitHits
	}
	if !killed {
		return ""
	}
	message := "the kernel killed it for memory"
	for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
		text, _ := readLimited(filepath.Join(string(g), name), 64)
		limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && limit < 1<<60 { // version 1 says "no limit" with a huge number
			message += fmt.Sprintf("; the limit is %d MiB", limit>>20)
		}
	}
	return message
}

// readLimited reads at most limit bytes of a file.
func readLimited(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit))
}
