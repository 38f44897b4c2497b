package main

import (
	"encoding/json"
	"maps"
	"os"
	"sync"
	"time"
)

const (
	pollEvery    = 20 * time.Millisecond
	queryTimeout = 300 * time.Millisecond
)

// inventory is what is believed of the devices: IDs that were seen, and whether each is well.
type inventory struct {
	hardware hardware
	defect   string
	prefix   string
	file     string

	mutex   sync.Mutex
	devices map[string]bool
	known   bool
	away    map[string]bool
	changed chan struct{}
}

func newInventory(hardware hardware, file, prefix, defect string) *inventory {
	i := &inventory{hardware: hardware, defect: defect, prefix: prefix, file: file}
	i.devices, i.away, i.changed = map[string]bool{}, map[string]bool{}, make(chan struct{})
	if text, err := os.ReadFile(file); err == nil && defect != "forgets-inventory" {
		var ids []string
		if json.Unmarshal(text, &ids) == nil {
			for _, id := range ids {
				i.devices[id] = false
			}
		}
	}
	return i
}

func (i *inventory) snapshot() (map[string]bool, chan struct{}) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return maps.Clone(i.devices), i.changed
}

func (i *inventory) healthy(id string) (known, well bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	well, known = i.devices[id]
	return known, well
}

func (i *inventory) publish(devices map[string]bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if maps.Equal(devices, i.devices) {
		return
	}
	i.devices = devices
	close(i.changed)
	i.changed = make(chan struct{})
}

func (i *inventory) save() {
	devices, _ := i.snapshot()
	ids := []string{}
	for id := range devices {
		ids = append(ids, id)
	}
	text, _ := json.Marshal(ids)
	temporary := i.file + ".new"
	if os.WriteFile(temporary, text, 0o644) == nil {
		_ = os.Rename(temporary, i.file)
	}
}

type answer struct {
	listed map[string]bool
	err    error
}

// watch polls for ever; the first round is done when it calls ready.
func (i *inventory) watch(ready func()) {
	answers := make(chan answer, 1)
	asking := false
	for {
		if !asking {
			asking = true
			go func() {
				listed, err := i.hardware.query(i.defect)
				answers <- answer{listed, err}
			}()
		}
		timeout := time.After(queryTimeout)
		if i.defect == "hang-unnoticed" {
			timeout = nil
		}
		select {
		case got := <-answers:
			asking = false
			if got.err != nil {
				i.failed(false)
			} else {
				i.observed(got.listed)
			}
		case <-timeout:
			i.failed(true)
		}
		if ready != nil {
			ready()
			ready = nil
		}
		time.Sleep(pollEvery)
	}
}

func (i *inventory) observed(listed map[string]bool) {
	devices, _ := i.snapshot()
	if i.defect == "exits-without-devices" && len(listed) == 0 && len(devices) == 0 {
		fail(1, "no devices found")
	}
	next := map[string]bool{}
	for id := range devices {
		next[id] = false
		if i.defect == "drops-unlisted" {
			delete(next, id)
		}
	}
	for _, card := range cards {
		if i.defect == "stays-gone" && i.hardware.has("removed-"+card) {
			i.away[card] = true
		}
	}
	for id, well := range listed {
		well = well && !i.away[cardOf(id)]
		id = i.prefix + id
		was, present := devices[id]
		if i.defect == "no-rescan" && i.known && !present {
			continue
		}
		if i.defect == "never-recovers" && i.known && present && !was {
			well = false
		}
		next[id] = well
	}
	i.known = true
	i.publish(next)
	if len(next) != len(devices) {
		i.save()
	}
}

func (i *inventory) failed(silent bool) {
	devices, _ := i.snapshot()
	if i.defect == "drops-on-failure" && i.known && !silent {
		i.publish(map[string]bool{})
		return
	}
	if i.defect == "healthy-without-check" && len(devices) == 0 {
		i.publish(map[string]bool{"card0-a": true})
		return
	}
	if i.defect == "healthy-without-check" && devices["card0-a"] && !i.known {
		return
	}
	for id := range devices {
		devices[id] = false
	}
	i.publish(devices)
}
