package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// plant makes a tree: a name that ends with / is a directory, content that begins with -> a link.
func plant(t *testing.T, root string, tree map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		path := filepath.Join(root, name)
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			if link, is := strings.CutPrefix(tree[name], "->"); is {
				err = os.Symlink(link, path)
			} else {
				err = os.WriteFile(path, []byte(tree[name]), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// harvest is the inverse of plant.
func harvest(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		switch entry.Type() {
		case fs.ModeDir:
			tree[name+"/"] = ""
		case fs.ModeSymlink:
			link, _ := os.Readlink(path)
			tree[name] = "->" + link
		default:
			content, _ := os.ReadFile(path)
			tree[name] = string(content)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestTransfer(t *testing.T) {
	tree := map[string]string{
		"a": "1", "deep/": "", "deep/er/": "", "deep/er/b": "22", "empty/": "", "near": "->a", "deep/up": "->../a",
		"inner": "->deep/er", "lost": "->nowhere",
	}
	for _, move := range []bool{false, true} {
		from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
		plant(t, from, tree)
		plant(t, to, map[string]string{"a": "old", "deep/er/b": "old", "other": "stays", "near": "old"})
		var done transferred
		var err error
		if move {
			done, err = moveTree(from, to)
		} else {
			done, err = copyTree(context.Background(), from, to)
		}
		if err != nil || done != (transferred{files: 2, bytes: 3}) {
			t.Fatalf("move %v: %+v %v", move, done, err)
		}
		want := maps.Clone(tree)
		want["other"] = "stays"
		if got := harvest(t, to); !maps.Equal(got, want) {
			t.Errorf("move %v: %v", move, got)
		}
		left := tree
		if move {
			left = map[string]string{}
		}
		if got := harvest(t, from); !maps.Equal(got, left) {
			t.Errorf("move %v left %v", move, got)
		}
	}
}

func TestTransferToAnotherFileSystem(t *testing.T) {
	shared, err := os.MkdirTemp("/dev/shm", "rma-launch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(shared)
	from := filepath.Join(t.TempDir(), "from")
	plant(t, from, map[string]string{"a": "1", "deep/b": "22"})
	if err := os.Chmod(filepath.Join(from, "a"), 0o555); err != nil {
		t.Fatal(err)
	}
	if _, err := moveTree(from, filepath.Join(shared, "to")); err != nil {
		t.Fatal(err)
	}
	if got := harvest(t, filepath.Join(shared, "to")); got["a"] != "1" || got["deep/b"] != "22" {
		t.Errorf("%v", got)
	}
	if got := harvest(t, from); len(got) != 0 {
		t.Errorf("left %v", got)
	}
	if info, err := os.Stat(filepath.Join(shared, "to", "a")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestTransferStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	plant(t, from, map[string]string{"a": "1"})
	if done, err := copyTree(ctx, from, to); !errors.Is(err, context.Canceled) || done.files != 0 {
		t.Errorf("%+v %v", done, err)
	}
}

func TestFailedCopies(t *testing.T) {
	for err, code := range map[error]int{
		fs.ErrNotExist: codeBadInput,
		&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}:  codeBadInput,
		fmt.Errorf("x: %w", errLeavesTree):                         codeBadInput,
		&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}: codeTransient,
		&fs.PathError{Op: "read", Path: "x", Err: syscall.EIO}:     codeTransient,
		context.Canceled: codeTransient,
	} {
		if got := (failedCopy{err}).verdict(); got.code != code {
			t.Errorf("%v: %+v", err, got)
		}
	}
}
