// Command rma-launch runs vendor images unmodified: it starts a build step or an engine as its child, and says of it
// what the operator has to know. It is static and needs neither a shell nor an interpreter in the image.
package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// version is set by the image's build (-ldflags "-X main.version=…").
var version = "development"

const usage = `rma-launch runs a build step or an engine as its child and reports how it went.

  rma-launch install DIR
  rma-launch copy PATH DIR
  rma-launch run JUDGED -- ARGV...
  rma-launch python JUDGED [--flag NAME=VALUE]... -- MODULE:FUNCTION ARGS...
  rma-launch warmup JUDGED [--port 8000] [--sequence L] [--batch B] [--ready-timeout SECONDS]
                    [--stop-timeout SECONDS] -- ARGV...
  rma-launch version-probe --name TOOL --pattern RE [--exit-code N=MEANING]... -- ARGV...
  rma-launch engine --served-name NAME [--port 8000] [--report-port 9009] [--artifact-dir DIR --artifact-key KEY]
                    [--cache-from DIR] [--require-devices N] [--ready-timeout SECONDS] [--hang-timeout SECONDS]
                    [--drain-delay SECONDS] [--drain-timeout SECONDS] [--log-format native|logfmt]
                    {-- ARGV... | --command-file FILE [-- ARGS...]}
  rma-launch registry --config FILE --read-only-config FILE [--first 10m] [--every 24h] -- PROGRAM
  rma-launch version

JUDGED is --name NAME [--output GLOB]... [--success-pattern RE] [--failure-pattern RE] [--exit-code N=MEANING]...
[--failure-meaning MEANING] [--version NAME=VALUE]... [--require-devices N [--require-driver VERSION]...], and MEANING is
BadInput, UnsupportedModel, ToolchainFailure or Transient. ARGV, PATH, DIR, the outputs and the environment may name
variables as ${NAME}; $$ is a dollar. There is no shell. python runs python3, or what RMA_PYTHON names.
`

// commands are those that leave a report.
var commands = map[string]func(args, environ []string, log terminationLog) outcome{
	"install":       install,
	"copy":          copyOut,
	"run":           runStep,
	"python":        runPython,
	"warmup":        runWarmup,
	"version-probe": runVersionProbe,
	"engine":        runEngine,
	"registry":      keepRegistry,
}

func main() {
	// A reader of our output that goes away must not kill us with SIGPIPE while the child works. Notify rather than
	// Ignore: an ignored signal would stay ignored in the child.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(dispatch(os.Args[1:], os.Environ()))
}

func dispatch(args, environ []string) int {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return codeBadInput
	}
	command, args := args[0], args[1:]
	switch command {
	case "version", "--version":
		fmt.Printf("rma-launch %s (%s)\n", version, runtime.Version())
		return codeOK
	case "help", "--help", "-h":
		fmt.Print(usage)
		return codeOK
	}
	log := findTerminationLog()
	action, known := commands[command]
	if !known {
		names := append(slices.Collect(maps.Keys(commands)), "version")
		slices.Sort(names)
		return conclude(refuse("there is no command %q; there are %s", command, strings.Join(names, ", ")), log)
	}
	return conclude(action(args, environ, log), log)
}

// conclude leaves the report, says in the log why something failed, and gives the exit code.
func conclude(result outcome, log terminationLog) int {
	if result.code != codeOK {
		warn("%s: %s (exit code %d)", result.report.Reason, result.report.Message, result.code)
	}
	if !result.keepOwn {
		if err := log.write(result.report); err != nil {
			warn("cannot leave the report: %v", err)
		}
	}
	return result.code
}

func warn(format string, args ...any) { say("warn", format, args...) }

func info(format string, args ...any) { say("info", format, args...) }

// say writes a line of ours: key=value, so that it is told from the child's.
func say(level, format string, args ...any) {
	pairs(os.Stderr, "level="+level+" from=rma-launch", oneLine(fmt.Sprintf(format, args...)))
}

// told is the beginning of a line that has the format already.
var told = regexp.MustCompile(`^time=\S+ level=\S+ from=\S+ msg="`)

// retell writes a line of the child's in the format of ours. What it means by it is not guessed: there is no level.
func retell(line string, fromStderr bool) {
	to, stream := os.Stdout, "stdout"
	if fromStderr {
		to, stream = os.Stderr, "stderr"
	}
	switch {
	case told.MatchString(line):
		fmt.Fprintln(to, line)
	case strings.TrimSpace(line) != "":
		pairs(to, "from=engine stream="+stream, line)
	}
}

func pairs(to io.Writer, what, message string) {
	message = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(message)
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	fmt.Fprintf(to, "time=%s %s msg=\"%s\"\n", now, what, message)
}

// splitArgs separates our flags from the child's arguments at the first "--".
func splitArgs(args []string) (flags, argv []string, err error) {
	for i, arg := range args {
		if arg == "--" {
			if i+1 == len(args) {
				return nil, nil, fmt.Errorf("no program after --")
			}
			return args[:i], args[i+1:], nil
		}
	}
	return nil, nil, fmt.Errorf("the program to run has to follow after --")
}

// install copies this program into a directory that the pod's other containers see.
func install(args, _ []string, _ terminationLog) outcome {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return refuse("install takes one directory: rma-launch install DIR")
	}
	target := args[0] + "/rma-launch"
	if info, err := os.Stat(args[0]); err != nil || !info.IsDir() {
		return refuse("%s is no directory; mount the volume for it there", args[0])
	}
	if err := copySelf(target); err != nil {
		return outcome{code: codeTransient, report: report{Reason: "Retrying", Message: "cannot install: " + err.Error()}}
	}
	return outcome{report: report{Reason: "Ready", Message: "installed " + target}}
}

func copySelf(target string) (err error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	// Renamed into place: a container that restarts must not find "text file busy" or half a program.
	partial, err := os.CreateTemp(target[:strings.LastIndexByte(target, '/')], ".rma-launch-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(partial.Name())
		}
	}()
	_, err = io.Copy(partial, self)
	if err == nil {
		err = partial.Chmod(0o755) // whatever the umask says
	}
	if closing := partial.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(partial.Name(), target)
	}
	return err
}
