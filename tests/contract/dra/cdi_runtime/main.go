// Does with CDI files what container runtimes do, by the library that they use: prints the container that
// `cdi-runtime DIRECTORY KIND=NAME…` makes of an empty one. Files with errors and devices that are not there end it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func run(directory string, devices []string) error {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(directory), cdi.WithAutoRefresh(false))
	if err != nil {
		return err
	}
	for path, errors := range cache.GetErrors() {
		return fmt.Errorf("%s: %v", path, errors)
	}
	container := &oci.Spec{
		Version: oci.Version,
		Process: &oci.Process{User: oci.User{UID: 65532, GID: 65532}},
		Linux:   &oci.Linux{Resources: &oci.LinuxResources{}},
	}
	if missing, err := cache.InjectDevices(container, devices...); err != nil {
		return fmt.Errorf("%v: %w", missing, err)
	}
	return json.NewEncoder(os.Stdout).Encode(container)
}

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
