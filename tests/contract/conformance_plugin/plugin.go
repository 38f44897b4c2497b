package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	tick             = 40 * time.Millisecond
	registerTimeout  = 5 * time.Second
	firstPause       = 100 * time.Millisecond
	longestPause     = 2 * time.Second
	streamComesAfter = 2 * time.Second
)

// identity tells a socket from one that was made in its place.
type identity struct {
	inode uint64
	made  int64
}

func identify(path string) identity {
	info, err := os.Stat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return identity{}
	}
	return identity{info.Sys().(*syscall.Stat_t).Ino, info.ModTime().UnixNano()}
}

// plugin keeps itself registered.
type plugin struct {
	dir, resource, slug, defect string
	inventory                   *inventory

	server  *grpc.Server
	service *service
	socket  string
	mine    atomic.Value // identity of socket, once it is listened on

	alone        bool // there was no kubelet when it started
	registeredTo identity
	attempts     int
	pause        time.Duration
	notBefore    time.Time
	siblings     map[string]int64
	superseded   bool
}

var resourceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)

func newPlugin(hardware hardware, dir, resource, defect string) *plugin {
	if (!resourceName.MatchString(resource) || strings.Contains(resource, "kubernetes.io/")) && defect != "accepts-bad-name" {
		fail(64, "%q cannot be the name of a resource", resource)
	}
	slug := strings.ReplaceAll(resource, "/", "_")
	prefix := ""
	if defect == "random-ids" {
		prefix = token() + "-"
	}
	file := filepath.Join(dir, slug+".inventory")
	return &plugin{
		dir: dir, resource: resource, slug: slug, defect: defect, pause: firstPause,
		inventory: newInventory(hardware, file, prefix, defect), siblings: map[string]int64{},
	}
}

func token() string {
	bytes := make([]byte, 4)
	_, _ = rand.Read(bytes)
	return hex.EncodeToString(bytes)
}

func (p *plugin) is(defect string) bool { return p.defect == defect }
func (p *plugin) kubelet() identity     { return identify(filepath.Join(p.dir, "kubelet.sock")) }

func (p *plugin) run() {
	p.alone = p.kubelet() == identity{}
	if p.alone && p.is("needs-kubelet") {
		fail(1, "kubelet.sock: no such file or directory")
	}
	p.clean()
	ready := make(chan struct{})
	go p.inventory.watch(func() { close(ready) })
	<-ready
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	for {
		select {
		case <-stop:
			for p.is("sigterm-waits-for-tool") && p.inventory.hardware.mode() == "hang" {
				time.Sleep(tick)
			}
			if !p.is("ignores-sigterm") {
				p.close(p.is("leaves-socket"))
				return
			}
		case <-time.After(tick):
			p.step()
		}
	}
}

// clean removes what an earlier instance left, and nothing that somebody listens on.
func (p *plugin) clean() {
	entries, err := os.ReadDir(p.dir)
	must(err)
	for _, entry := range entries {
		path := filepath.Join(p.dir, entry.Name())
		if entry.Type()&os.ModeSocket == 0 || entry.Name() == "kubelet.sock" {
			continue
		}
		ours := strings.HasPrefix(entry.Name(), p.slug)
		if ours && !p.is("keeps-stale") && !listens(path) || !ours && p.is("wipes-directory") {
			_ = os.Remove(path)
		}
	}
}

func listens(path string) bool {
	connection, err := net.Dial("unix", path)
	if err == nil {
		_ = connection.Close()
	}
	return err == nil
}

func (p *plugin) close(leave bool) {
	if p.server == nil {
		return
	}
	p.server.Stop()
	if !leave && p.intact() {
		_ = os.Remove(p.socket)
	}
	p.server = nil
}

func (p *plugin) serve() {
	p.close(false)
	p.socket = filepath.Join(p.dir, p.slug+"-"+token()+".sock")
	if p.is("fixed-socket-name") {
		p.socket = filepath.Join(p.dir, p.slug+".sock")
		_ = os.Remove(p.socket)
	}
	p.mine = atomic.Value{}
	p.server, p.service = grpc.NewServer(), newService(p.inventory, p.defect, p.kubelet)
	api.RegisterDevicePluginServer(p.server, p.service)
	p.registeredTo, p.notBefore = identity{}, time.Time{}
	if p.is("serves-late") {
		server, socket := p.server, p.socket
		go func() { time.Sleep(300 * time.Millisecond); p.listen(server, socket) }()
		return
	}
	p.listen(p.server, p.socket)
}

func (p *plugin) listen(server *grpc.Server, socket string) {
	listener, err := net.Listen("unix", socket)
	must(err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	p.mine.Store(identify(socket))
	go func() { _ = server.Serve(listener) }()
}

func (p *plugin) step() {
	kubelet := p.kubelet()
	gone := kubelet == identity{}
	if gone && p.is("exits-on-restart") && p.registeredTo != (identity{}) {
		fail(1, "kubelet.sock was removed")
	}
	if p.inventory.hardware.has("reload") && p.is("reload-drops-stream") {
		p.inventory.hardware.lower("reload")
		p.serve()
	}
	lost := p.server != nil && !p.intact()
	if p.is("ignores-own-socket") {
		lost = lost && kubelet != p.registeredTo
	}
	if p.is("compares-inodes") {
		lost = lost && (p.anyStream() || kubelet.inode != p.registeredTo.inode)
	}
	if p.server == nil || lost {
		p.serve()
	}
	p.watchSiblings()
	if gone || p.registered(kubelet) || time.Now().Before(p.notBefore) || p.is("never-registers") {
		return
	}
	p.register(kubelet)
}

// intact is false once the file of our socket was removed or replaced.
func (p *plugin) intact() bool {
	mine, listening := p.mine.Load().(identity)
	return !listening || identify(p.socket) == mine
}

func (p *plugin) born() int64 {
	mine, _ := p.mine.Load().(identity)
	return mine.made
}

// registered is true while the present kubelet has an open stream of ours.
func (p *plugin) registered(kubelet identity) bool {
	if p.superseded {
		return false
	}
	if p.is("ignores-lost-stream") {
		return p.registeredTo == kubelet
	}
	if p.is("compares-inodes") {
		return p.registeredTo.inode == kubelet.inode
	}
	return p.streaming(kubelet)
}

func (p *plugin) streaming(kubelet identity) bool {
	p.service.mutex.Lock()
	defer p.service.mutex.Unlock()
	for _, began := range p.service.streams {
		if began == kubelet {
			return true
		}
	}
	return false
}

func (p *plugin) anyStream() bool {
	p.service.mutex.Lock()
	defer p.service.mutex.Unlock()
	return len(p.service.streams) > 0
}

// watchSiblings sees a younger instance leave: with it kubelets forget the resource.
func (p *plugin) watchSiblings() {
	entries, _ := os.ReadDir(p.dir)
	now := map[string]int64{}
	for _, entry := range entries {
		path := filepath.Join(p.dir, entry.Name())
		if strings.HasPrefix(entry.Name(), p.slug+"-") && path != p.socket {
			now[path] = identify(path).made
		}
	}
	for path, made := range p.siblings {
		if _, there := now[path]; !there && made > p.born() && !p.is("ignores-siblings") {
			p.superseded = true
		}
	}
	p.siblings = now
}

func (p *plugin) register(kubelet identity) {
	opened := p.service.opened.Load()
	err := p.call()
	for p.is("hot-loop") && status.Code(err) == codes.Unknown && p.intact() {
		err = p.call()
	}
	p.attempts++
	if err != nil {
		if p.is("gives-up") && status.Code(err) == codes.Unknown {
			fail(1, "%v", err)
		}
		if p.is("first-register-unretried") && p.attempts == 1 && cut(err) {
			p.defect = "never-registers"
			return
		}
	} else {
		deadline := time.Now().Add(streamComesAfter)
		for p.service.opened.Load() == opened && time.Now().Before(deadline) && p.kubelet() == kubelet {
			time.Sleep(time.Millisecond)
		}
		if p.service.opened.Load() != opened {
			p.registeredTo, p.pause, p.superseded = kubelet, firstPause, false
		}
		if p.alone && p.is("registers-twice") {
			p.alone = false
			_ = p.call()
		}
	}
	if !p.is("hot-loop") {
		p.notBefore = time.Now().Add(p.pause)
		p.pause = min(2*p.pause, longestPause)
	}
}

// cut is true for a call whose other side went away.
func cut(err error) bool {
	return status.Code(err) == codes.Unavailable || status.Code(err) == codes.Canceled
}

func (p *plugin) call() error {
	connection, err := grpc.NewClient("unix:"+filepath.Join(p.dir, "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
	defer cancel()
	if p.is("no-register-deadline") {
		ctx = context.Background()
	}
	request := &api.RegisterRequest{
		Version: api.Version, Endpoint: filepath.Base(p.socket), ResourceName: p.resource, Options: p.service.options(),
	}
	if p.is("options-differ") {
		request.Options = &api.DevicePluginOptions{}
	}
	if p.is("endpoint-is-path") {
		request.Endpoint = p.socket
	}
	_, err = api.NewRegistrationClient(connection).Register(ctx, request)
	return err
}
