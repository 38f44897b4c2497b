package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	coalesce        = 250 * time.Millisecond
	allocateTimeout = time.Second
)

// service answers on one socket.
type service struct {
	api.UnimplementedDevicePluginServer
	inventory *inventory
	hardware  hardware
	defect    string
	kubelet   func() identity

	mutex   sync.Mutex
	streams map[int]identity
	newest  int
	opened  atomic.Int64
	served  atomic.Int64
	last    atomic.Value
	busy    atomic.Int64
	workers chan struct{}
}

func newService(inventory *inventory, defect string, kubelet func() identity) *service {
	return &service{
		inventory: inventory, hardware: inventory.hardware, defect: defect, kubelet: kubelet,
		streams: map[int]identity{}, workers: make(chan struct{}, 6),
	}
}

func (s *service) options() *api.DevicePluginOptions {
	return &api.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true}
}

// work is a slot of the broken plugin that has few workers.
func (s *service) work(ctx context.Context) (release func(), err error) {
	if s.defect != "few-workers" {
		return func() {}, nil
	}
	select {
	case s.workers <- struct{}{}:
		return func() { <-s.workers }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) GetDevicePluginOptions(ctx context.Context, _ *api.Empty) (*api.DevicePluginOptions, error) {
	release, err := s.work(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return s.options(), nil
}

func (s *service) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	ctx := stream.Context()
	release, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer release()
	number := int(s.opened.Add(1))
	if s.defect == "keeps-cancelled" && number > 80 {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.defect == "leaks-files" {
		s.mutex.Lock()
		leaked, _ := os.Open(os.DevNull)
		leaks = append(leaks, leaked)
		s.mutex.Unlock()
	}
	s.mutex.Lock()
	s.streams[number], s.newest = s.kubelet(), number
	s.mutex.Unlock()
	defer func() { s.mutex.Lock(); delete(s.streams, number); s.mutex.Unlock() }()
	if s.defect == "late-first-list" && number <= 3 {
		time.Sleep(1200 * time.Millisecond)
	}
	if s.defect == "first-list-empty" {
		if err := stream.Send(&api.ListAndWatchResponse{}); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	var sent map[string]bool
	for {
		devices, changed := s.inventory.snapshot()
		if sent == nil || !maps.Equal(devices, sent) || s.defect == "periodic-list" {
			if err := stream.Send(s.list(devices)); err != nil {
				return err
			}
			sent = devices
		}
		if s.defect != "every-flap" && !pause(ctx, coalesce) {
			return ctx.Err()
		}
		var period <-chan time.Time
		if s.defect == "periodic-list" {
			period = time.After(450 * time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-period:
		}
		if s.defect == "update-to-one-stream" && !s.isNewest(number) {
			<-ctx.Done()
			return ctx.Err()
		}
	}
}

var leaks []*os.File

func (s *service) isNewest(number int) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.newest == number
}

func pause(ctx context.Context, span time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(span):
		return true
	}
}

func (s *service) list(devices map[string]bool) *api.ListAndWatchResponse {
	response := &api.ListAndWatchResponse{}
	for _, id := range slices.Sorted(maps.Keys(devices)) {
		health := api.Unhealthy
		if devices[id] {
			health = api.Healthy
		}
		topology := &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: numa(cardOf(id))}}}
		response.Devices = append(response.Devices, &api.Device{ID: id, Health: health, Topology: topology})
	}
	if len(devices) == 0 {
		return response
	}
	switch s.defect {
	case "long-id":
		response.Devices = append(response.Devices, &api.Device{ID: strings.Repeat("x", 64), Health: api.Unhealthy})
	case "odd-health":
		response.Devices = append(response.Devices, &api.Device{ID: "other", Health: "OK"})
	case "duplicate-id":
		response.Devices = append(response.Devices, &api.Device{ID: "twin", Health: api.Unhealthy}, &api.Device{ID: "twin", Health: api.Unhealthy})
	}
	return response
}

func (s *service) GetPreferredAllocation(_ context.Context, request *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	response := &api.PreferredAllocationResponse{}
	for _, wish := range request.ContainerRequests {
		chosen, err := s.prefer(wish)
		if err != nil && s.defect == "preferred-errors" {
			return nil, err
		}
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerPreferredAllocationResponse{DeviceIDs: chosen})
	}
	return response, nil
}

func (s *service) prefer(wish *api.ContainerPreferredAllocationRequest) ([]string, error) {
	chosen := slices.Clone(wish.MustIncludeDeviceIDs)
	if s.defect == "ignores-must-include" {
		chosen = nil
	}
	free := slices.DeleteFunc(slices.Clone(wish.AvailableDeviceIDs), func(id string) bool { return slices.Contains(chosen, id) })
	for _, id := range append(slices.Clone(free), chosen...) {
		if known, _ := s.inventory.healthy(id); !known {
			return nil, fmt.Errorf("there is no device %q", id)
		}
	}
	size := int(wish.AllocationSize)
	if size-len(chosen) < 0 || size-len(chosen) > len(free) {
		return nil, fmt.Errorf("%d of %v with %v cannot be", size, wish.AvailableDeviceIDs, wish.MustIncludeDeviceIDs)
	}
	if s.defect != "ignores-numa" {
		room := map[int64]int{}
		for _, id := range free {
			room[numa(cardOf(id))]++
		}
		enough := func(id string) int {
			if room[numa(cardOf(id))] >= size-len(chosen) {
				return 0
			}
			return 1
		}
		slices.SortStableFunc(free, func(a, b string) int {
			if order := enough(a) - enough(b); order != 0 {
				return order
			}
			return int(numa(cardOf(a)) - numa(cardOf(b)))
		})
	}
	return append(chosen, free[:size-len(chosen)]...), nil
}

func (s *service) Allocate(ctx context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	if s.defect == "empty-response" {
		return response, nil
	}
	for number, container := range request.ContainerRequests {
		answer, err := s.allocate(ctx, container.DevicesIds)
		if err != nil {
			return nil, err
		}
		if number == 0 || s.defect != "first-container-only" {
			response.ContainerResponses = append(response.ContainerResponses, answer)
		}
	}
	return response, nil
}

func (s *service) allocate(ctx context.Context, ids []string) (*api.ContainerAllocateResponse, error) {
	if s.defect == "slow-allocate" {
		time.Sleep(300 * time.Millisecond)
	}
	seen := map[string]bool{}
	for _, id := range ids {
		known, well := s.inventory.healthy(id)
		switch {
		case !known && s.defect != "accepts-unknown":
			return nil, fmt.Errorf("there is no device %q", id)
		case seen[id] && s.defect != "accepts-duplicate":
			return nil, fmt.Errorf("device %q is named twice", id)
		case known && !well && s.defect != "accepts-unhealthy":
			return nil, fmt.Errorf("device %q is unhealthy", id)
		}
		seen[id] = true
		if !known {
			continue
		}
		if _, err := os.Stat(s.hardware.node(cardOf(id))); err != nil && s.defect != "ignores-missing-node" {
			return nil, fmt.Errorf("device %q: %w", id, err)
		}
		if err := s.prepare(ctx, id); err != nil {
			return nil, err
		}
	}
	return s.container(ids), nil
}

// prepare is the vendor's work, which may hang.
func (s *service) prepare(ctx context.Context, id string) error {
	deadline := time.Now().Add(allocateTimeout)
	for s.hardware.has("stuck-" + id[strings.Index(id, "card"):]) {
		if s.defect != "allocate-no-deadline" && time.Now().After(deadline) {
			return fmt.Errorf("device %q: its preparation did not end within %v", id, allocateTimeout)
		}
		if !pause(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func (s *service) container(ids []string) *api.ContainerAllocateResponse {
	if s.defect == "mixes-parallel" {
		s.last.Store(ids)
		if s.busy.Add(1) > 1 {
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond)
		ids = s.last.Load().([]string)
		s.busy.Add(-1)
	}
	answer := &api.ContainerAllocateResponse{Envs: map[string]string{"DEVICE_IDS": strings.Join(ids, ",")}}
	if s.defect == "changing-answer" {
		answer.Envs["CALL"] = fmt.Sprint(s.served.Add(1))
	}
	for _, id := range ids {
		if strings.Contains(id, "card") {
			card := cardOf(id)
			path := "/dev/" + card
			if s.defect == "relative-path" {
				path = "dev/" + card
			}
			answer.Devices = append(answer.Devices, &api.DeviceSpec{HostPath: s.hardware.node(card), ContainerPath: path, Permissions: "rw"})
		}
	}
	return answer
}

func (s *service) PreStartContainer(context.Context, *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	if s.defect == "pre-start-fails" {
		return nil, fmt.Errorf("the device cannot be reset")
	}
	return &api.PreStartContainerResponse{}, nil
}
