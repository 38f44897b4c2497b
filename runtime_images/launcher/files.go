package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// copyChunk is copied between two looks at whether to go on.
const copyChunk = 64 << 20

// failedCopy is what came in the way of copying files.
type failedCopy struct{ error }

func (f failedCopy) Unwrap() error { return f.error }

// verdict blames the spec for what is not there or must not be read; the rest, such as a full disk, may pass.
func (f failedCopy) verdict() verdict {
	if errors.Is(f, fs.ErrNotExist) || errors.Is(f, fs.ErrPermission) || errors.Is(f, errLeavesTree) {
		return verdict{codeBadInput, "InvalidSpec"}
	}
	return verdict{codeTransient, "Retrying"}
}

var errLeavesTree = errors.New("a link to a directory outside")

// transferred is how much was copied or moved.
type transferred struct{ files, bytes int64 }

// transfer copies a tree, or moves it, also to another file system.
type transfer struct {
	ctx  context.Context
	root string
	move bool
	done transferred
}

// copyTree copies what is in directory from into directory to, over what is there.
func copyTree(ctx context.Context, from, to string) (transferred, error) {
	return transferTree(&transfer{ctx: ctx}, from, to)
}

// moveTree moves what is in directory from into directory to.
func moveTree(from, to string) (transferred, error) {
	done, err := transferTree(&transfer{ctx: context.Background(), move: true}, from, to)
	if err != nil {
		return done, err
	}
	entries, err := os.ReadDir(from)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(from, entry.Name())))
	}
	if err != nil {
		return done, failedCopy{err}
	}
	return done, nil
}

func transferTree(t *transfer, from, to string) (transferred, error) {
	root, err := filepath.EvalSymlinks(from)
	if err == nil {
		t.root = root
		err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil {
				err = t.ctx.Err()
			}
			if err != nil {
				return err
			}
			inner, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return t.entry(path, filepath.Join(to, inner), entry.Type())
		})
	}
	if err != nil {
		return t.done, failedCopy{err}
	}
	return t.done, nil
}

func (t *transfer) entry(path, target string, kind fs.FileMode) error {
	switch kind {
	case fs.ModeDir:
		return os.MkdirAll(target, 0o755)
	case 0:
		return t.file(path, target)
	case fs.ModeSymlink:
		return t.link(path, target)
	}
	warn("%s is neither a file nor a directory nor a link, and is left out", path)
	return nil
}

// link keeps a link that stays in the tree; one that leaves it is replaced by what it points at.
func (t *transfer) link(path, target string) error {
	pointed, err := os.Readlink(path)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(pointed) {
		pointed = filepath.Join(filepath.Dir(path), pointed)
	}
	if isWithin(pointed, t.root) {
		relative, err := filepath.Rel(filepath.Dir(path), pointed)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(target); err != nil {
			return err
		}
		return os.Symlink(relative, target)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		warn("%s points at %s, which does not exist, and is left out", path, pointed)
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s points at %s: %w of %s cannot be taken along", path, pointed, errLeavesTree, t.root)
	}
	return t.copied(path, target)
}

func (t *transfer) file(path, target string) error {
	if !t.move {
		return t.copied(path, target)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := os.Rename(path, target); err == nil {
		t.done.files++
		t.done.bytes += info.Size()
		return nil
	}
	if err := t.copied(path, target); err != nil { // the target is on another file system
		return err
	}
	return os.Remove(path)
}

// copied copies the content and mode of a file. An engine may write to its cache, so the owner always may.
func (t *transfer) copied(path, target string) (err error) {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	into, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for err == nil {
		if err = t.ctx.Err(); err == nil {
			_, err = io.CopyN(into, from, copyChunk)
		}
	}
	if errors.Is(err, io.EOF) {
		err = into.Chmod(info.Mode().Perm() | 0o600)
	}
	if closing := into.Close(); err == nil {
		err = closing
	}
	if err == nil {
		t.done.files++
		t.done.bytes += info.Size()
	}
	return err
}

// isWithin tells that path is directory or in it.
func isWithin(path, directory string) bool {
	inner, err := filepath.Rel(directory, path)
	return err == nil && filepath.IsLocal(inner)
}

// copyOut copies a file or a directory out of the image, into a directory of the pod.
func copyOut(args, environ []string, _ terminationLog) outcome {
	if len(args) != 2 || strings.HasPrefix(args[0], "-") {
		return refuse("copy takes a path in the image and a directory: rma-launch copy PATH DIR")
	}
	paths, err := newExpander(buildCatalogue, environ).all("argument", args)
	if err != nil {
		return refuse("%v", err)
	}
	source, into := filepath.Clean(paths[0]), filepath.Clean(paths[1])
	name := filepath.Base(source)
	if name == "/" || name == "." || name == ".." {
		return refuse("%q names no file or directory that could be copied under its name", args[0])
	}
	target := filepath.Join(into, name)
	if isWithin(target, source) {
		return refuse("%s is in %s and cannot be copied there", into, source)
	}
	done, err := copyTo(source, target)
	if err != nil {
		return err.(failedCopy).verdict().because("cannot copy %s to %s: %v", source, into, err)
	}
	return outcome{report: report{Reason: "Ready", Message: fmt.Sprintf("copied %d files of %d bytes to %s", done.files, done.bytes, target)}}
}

func copyTo(source, target string) (transferred, error) {
	info, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it is not in this image: %w", err)
	}
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is neither a file nor a directory: %w", fs.ErrNotExist)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(target), 0o755)
	}
	if err != nil {
		return transferred{}, failedCopy{err}
	}
	if info.IsDir() {
		return copyTree(context.Background(), source, target)
	}
	t := transfer{ctx: context.Background()}
	if err := t.copied(source, target); err != nil {
		return t.done, failedCopy{err}
	}
	return t.done, nil
}
