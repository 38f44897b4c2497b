package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The files as the kernel and container runtimes show them, version 1 and 2, with and without a cgroup namespace.
var memoryLayouts = map[string]struct {
	cgroup, mountinfo string
	dir               string
	files             map[string]string
	after             map[string]string
	killed            string
}{
	"v2, namespaced": {
		"0::/\n", "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n", "sys/fs/cgroup",
		map[string]string{"memory.events": "low 0\nmax 5\noom 0\noom_kill 0\noom_group_kill 0\n", "memory.max": "1073741824\n"},
		map[string]string{"memory.events": "low 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"},
		"the limit is 1024 MiB",
	},
	"v2, not namespaced, no limit": {
		"0::/kubepods.slice/pod1/c1\n", "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n", "sys/fs/cgroup/kubepods.slice/pod1/c1",
		map[string]string{"memory.events": "oom_kill 3\n", "memory.max": "max\n"},
		map[string]string{"memory.events": "oom_kill 4\n"},
		"the kernel killed it for memory",
	},
	"v1, bind mount of our group": {
		"9:cpu,cpuacct:/kubepods/pod1/c1\n4:memory:/kubepods/pod1/c1\n0::/\n",
		"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n35 31 0:32 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro master:7 - cgroup cgroup rw,memory\n",
		"sys/fs/cgroup/memory",
		map[string]string{"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "memory.failcnt": "0\n", "memory.limit_in_bytes": "67108864\n"},
		map[string]string{"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "memory.failcnt": "20\n"},
		"the limit is 64 MiB",
	},
	"v1, whole hierarchy": {
		"4:memory:/a/b\n", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "sys/fs/cgroup/memory/a/b",
		map[string]string{"memory.oom_control": "oom_kill 0\n", "memory.limit_in_bytes": "9223372036854771712\n"},
		map[string]string{"memory.oom_control": "oom_kill 2\n"},
		"the kernel killed it for memory",
	},
	"v1, kernel without a count of kills": {
		"4:memory:/\n", "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "sys/fs/cgroup/memory",
		map[string]string{"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n", "memory.failcnt": "7\n"},
		map[string]string{"memory.failcnt": "8\n"},
		"the kernel killed it for memory",
	},
}

func TestMemoryGroup(t *testing.T) {
	for name, layout := range memoryLayouts {
		root := t.TempDir()
		write := func(path, content string) {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("proc/self/cgroup", layout.cgroup)
		write("proc/self/mountinfo", layout.mountinfo)
		for file, content := range layout.files {
			write(filepath.Join(layout.dir, file), content)
		}
		group := findMemoryGroup(root)
		if string(group) != filepath.Join(root, layout.dir) {
			t.Errorf("%s: found %q", name, group)
			continue
		}
		before := group.read()
		if message := group.killedSince(before, syscall.SIGKILL); message != "" {
			t.Errorf("%s: nothing happened, but %q", name, message)
		}
		for file, content := range layout.after {
			write(filepath.Join(layout.dir, file), content)
		}
		if message := group.killedSince(before, syscall.SIGKILL); !strings.HasSuffix(message, layout.killed) {
			t.Errorf("%s: %q", name, message)
		}
		// Reclaim hits the limit too; without a kill it is nobody's death.
		if message := group.killedSince(before, 0); before.kills < 0 && message != "" {
			t.Errorf("%s: no signal, but %q", name, message)
		}
	}
}

func TestNoMemoryGroup(t *testing.T) {
	group := findMemoryGroup(t.TempDir())
	if message := group.killedSince(group.read(), syscall.SIGKILL); group != "" || message != "" {
		t.Errorf("%q %q", group, message)
	}
}
