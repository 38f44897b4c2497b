package main

import "testing"

func TestParseDeviceNodes(t *testing.T) {
	for text, count := range map[string]int{
		"":                            0,
		"/dev/npu0=1:3":               1,
		"/dev/npu0=1:3,/dev/b=2:30":   2,
		"/dev/by=name=511:1048575":    1,
		"/dev/npu0":                   -1,
		"=1:3":                        -1,
		"/dev/npu0=1":                 -1,
		"/dev/npu0=1:x":               -1,
		"/dev/npu0=-1:3":              -1,
		"/dev/npu0=1:3,/dev/npu0=1:3": -1,
	} {
		nodes, err := parseDeviceNodes(text)
		if (err != nil) != (count < 0) || (err == nil && len(nodes) != count) {
			t.Errorf("%q: %v, %v", text, nodes, err)
		}
	}
}

// The encoding is the kernel's: twelve low bits of the major above eight of the minor, and the high bits above both.
func TestDeviceNumbers(t *testing.T) {
	for device, want := range map[uint64][2]uint32{
		0x103:           {1, 3},
		0xc3ff:          {195, 255},
		0xfff1ffff:      {511, 1048575},
		0x1200fedc345ba: {74565, 16702650},
	} {
		major, minor := deviceNumbers(device)
		if major != want[0] || minor != want[1] {
			t.Errorf("%#x: %d:%d; want %v", device, major, minor, want)
		}
	}
}
