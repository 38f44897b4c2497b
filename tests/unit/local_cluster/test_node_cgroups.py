"""Which control groups a node mounts, for the layouts that machines have."""

import pytest
from rm_local_cluster import cgroups, machine

KERNEL = """#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t3\t1\t1
cpu\t1\t1\t1
cpuacct\t1\t1\t1
blkio\t7\t1\t1
memory\t4\t8\t1
devices\t5\t1\t1
freezer\t6\t1\t1
net_cls\t0\t1\t0
hugetlb\t0\t1\t1
pids\t8\t1\t1
"""
SEPARATE = """22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:25 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:27 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
33 30 0:28 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
34 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 30 0:30 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
36 30 0:31 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
37 30 0:32 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
38 30 0:33 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
39 30 0:34 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
40 30 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
SYSTEMD = """30 22 0:25 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/hugetlb rw,nosuid shared:11 - cgroup cgroup rw,hugetlb
33 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:12 - cgroup cgroup rw,xattr,name=systemd
"""
UNIFIED = "30 22 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(("mountinfo", "version"), [(SEPARATE, 1), (SYSTEMD, 1), (UNIFIED, 2), ("", 1)])
def test_version(mountinfo: str, version: int) -> None:
    assert cgroups.version(mountinfo) == version


def test_hierarchies_are_those_of_the_machine_and_what_the_kubelet_needs_besides() -> None:
    assert cgroups.hierarchies_v1(SEPARATE, KERNEL) == [
        *("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"),
        "name=systemd",
        "hugetlb",
    ]


def test_controllers_that_the_machine_mounts_together_stay_together() -> None:
    found = cgroups.hierarchies_v1(SYSTEMD, KERNEL)
    assert found[:3] == ["cpu,cpuacct", "hugetlb", "name=systemd"]
    assert sorted(found[3:]) == ["blkio", "cpuset", "devices", "freezer", "memory", "pids"]


def test_a_controller_that_the_kernel_has_switched_off_is_not_mounted_but_reported() -> None:
    kernel = KERNEL.replace("pids\t8\t1\t1", "pids\t8\t1\t0").replace("hugetlb\t0\t1\t1\n", "")
    mountinfo = "".join(line for line in SEPARATE.splitlines(keepends=True) if "/pids " not in line)
    assert "pids" not in cgroups.hierarchies_v1(mountinfo, kernel)
    assert cgroups.lacking_v1(mountinfo, kernel) == ["pids", "hugetlb"]
    finding = machine.control_groups(mountinfo, kernel)
    assert (finding.severity, "pids, hugetlb" in finding.message) == ("problem", True)


@pytest.mark.parametrize("mountinfo", [SEPARATE, UNIFIED])
def test_doctor_accepts_either_version(mountinfo: str) -> None:
    assert machine.control_groups(mountinfo, KERNEL).severity == "ok"
