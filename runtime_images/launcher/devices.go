package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	deviceNodesName  = "RMA_DEVICE_NODES"
	deviceIDsName    = "DEVICE_IDS"
	deviceDriverName = "RMA_DEVICE_DRIVER"
)

// deviceNode is a device that the device plugin announced.
type deviceNode struct {
	path         string
	major, minor uint32
}

// parseDeviceNodes reads "path=major:minor,…".
func parseDeviceNodes(text string) ([]deviceNode, error) {
	var nodes []deviceNode
	seen := map[string]bool{}
	for _, entry := range strings.Split(text, ",") {
		if entry == "" {
			continue
		}
		equals := strings.LastIndexByte(entry, '=')
		if equals < 1 {
			return nil, fmt.Errorf("%s has %q; it should be path=major:minor", deviceNodesName, entry)
		}
		majorText, minorText, _ := strings.Cut(entry[equals+1:], ":")
		major, majorErr := strconv.ParseUint(majorText, 10, 32)
		minor, minorErr := strconv.ParseUint(minorText, 10, 32)
		if majorErr != nil || minorErr != nil {
			return nil, fmt.Errorf("%s has %q; it should be path=major:minor", deviceNodesName, entry)
		}
		path := entry[:equals]
		if seen[path] {
			return nil, fmt.Errorf("%s names %s twice", deviceNodesName, path)
		}
		seen[path] = true
		nodes = append(nodes, deviceNode{path, uint32(major), uint32(minor)})
	}
	return nodes, nil
}

// checkDevices makes sure that the allocated devices are here, are the announced ones, and open. A device may have several
// nodes, so ids, of which each has one, are what is counted where the device plugin names them.
func checkDevices(announced, ids string, required int) ([]deviceNode, error) {
	nodes, err := parseDeviceNodes(announced)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("%d devices are required and %s names none; does the pod request them, and is their device plugin ours?",
			required, deviceNodesName)
	}
	if ids != "" {
		if given := len(strings.Split(ids, ",")); given != required {
			return nil, fmt.Errorf("%d devices are required and %s names %d: %s", required, deviceIDsName, given, ids)
		}
	} else if len(nodes) != required {
		return nil, fmt.Errorf("%d devices are required and %s names %d: %s", required, deviceNodesName, len(nodes), announced)
	}
	for _, node := range nodes {
		if err := node.check(); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// checkDriver makes sure that the driver, as the device plugin named it, is one of those wanted. What nobody names is not
// held against it. Versions come from labels of nodes as often as from the driver, so what a label cannot have is no
// difference.
func checkDriver(found string, wanted []string) error {
	if found == "" || len(wanted) == 0 {
		return nil
	}
	for _, version := range wanted {
		if labelValue(version) == labelValue(found) {
			return nil
		}
	}
	return fmt.Errorf("the devices have driver %s, and the step is for %s", found, strings.Join(wanted, " or "))
}

const maxLabelValue = 63

// labelValue is a version as the value of a label.
func labelValue(version string) string {
	value := strings.Map(func(r rune) rune {
		if strings.ContainsRune("-_.", r) || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, version)
	return strings.Trim(value[:min(len(value), maxLabelValue)], "-_.")
}

func (d deviceNode) check() error {
	var info syscall.Stat_t
	if err := syscall.Stat(d.path, &info); err != nil {
		return fmt.Errorf("the device %s is not there: %w", d.path, err)
	}
	if info.Mode&syscall.S_IFMT != syscall.S_IFCHR {
		return fmt.Errorf("%s is no character device", d.path)
	}
	if major, minor := deviceNumbers(uint64(info.Rdev)); major != d.major || minor != d.minor {
		return fmt.Errorf("%s is device %d:%d; the device plugin announced %d:%d", d.path, major, minor, d.major, d.minor)
	}
	return d.open()
}

// open opens the device for a moment: permissions and the device cgroup show only then. One that may only be read
// counts, since a device plugin can allocate it so.
func (d deviceNode) open() error {
	const quietly = syscall.O_NONBLOCK | syscall.O_NOCTTY | syscall.O_CLOEXEC
	file, err := os.OpenFile(d.path, os.O_RDWR|quietly, 0)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		file, err = os.OpenFile(d.path, os.O_RDONLY|quietly, 0)
	}
	if err != nil {
		return fmt.Errorf("the device does not open: %w", err)
	}
	return file.Close()
}

// deviceNumbers splits a Linux dev_t.
func deviceNumbers(device uint64) (major, minor uint32) {
	major = uint32((device>>8)&0xfff | (device>>32)&^uint64(0xfff))
	minor = uint32(device&0xff | (device>>12)&^uint64(0xff))
	return major, minor
}

// observed describes the devices for the report, several in one entry, joined by commas. The nodes are what was found;
// the rest is what the device plugin said of them, until an engine says what it sees itself.
func observed(nodes []deviceNode) map[string]any {
	device := map[string]any{}
	if len(nodes) == 0 {
		return device
	}
	var paths []string
	for _, node := range nodes {
		paths = append(paths, node.path)
	}
	device["node"] = strings.Join(paths, ",")
	for member, variable := range map[string]string{
		"product": "RMA_DEVICE_PRODUCT", "serial": "RMA_DEVICE_SERIALS", "id": deviceIDsName,
	} {
		if value := os.Getenv(variable); value != "" {
			device[member] = value
		}
	}
	return device
}
