"""Detection of cores in fabricated /sys and /proc trees, on macOS and on Windows."""

import ctypes
import os
import struct
import sys

import pytest

from recurra.runtime import processors, windows_processors
from recurra.runtime.cgroups import cpu_quota
from recurra.runtime.processors import Processors, count_cores, linux_processors, mac_processors

CPUS = "sys/devices/system/cpu"
VERSION_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def tree(tmp_path):
    """Write files below a root directory and return the directory: tree({path: text})."""

    def write(*parts):
        for name, text in {k: v for files in parts for k, v in files.items()}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return tmp_path

    return write


def topology(cores, name="core_cpus_list"):
    """The files of cores, given by their logical CPUs."""
    return {
        f"{CPUS}/cpu{cpu}/topology/{name}": ",".join(map(str, core))
        for core in cores
        for cpu in core
    }


def nodes(*lists):
    return {f"sys/devices/system/node/node{i}/cpulist": cpus for i, cpus in enumerate(lists)}


SMT_LAPTOP = {
    **topology([(cpu, cpu + 4) for cpu in range(4)]), **nodes("0-7"), f"{CPUS}/online": "0-7",
}  # fmt: skip
TWO_SOCKETS = {
    **topology([(cpu, cpu + 32) for cpu in range(32)]), **nodes("0-15,32-47", "16-31,48-63"),
    f"{CPUS}/online": "0-63",
}  # fmt: skip


def test_linux_processors_hyper_threads_count_once(tree):
    expected = Processors(machine=8, allowed=8, cores=4, nodes=(4,))
    assert linux_processors(set(range(8)), tree(SMT_LAPTOP)) == expected


def test_linux_processors_older_kernel_names_siblings_differently(tree):
    root = tree(topology([(0, 1), (2, 3)], "thread_siblings_list"))
    assert linux_processors({0, 1, 2, 3}, root).cores == 2


def test_linux_processors_two_sockets_counts_cores_of_each_node(tree):
    expected = Processors(machine=64, allowed=64, cores=32, nodes=(16, 16))
    assert linux_processors(set(range(64)), tree(TWO_SOCKETS)) == expected


@pytest.mark.parametrize(
    ("mask", "cores", "shares"),
    [
        ({1, 33}, 1, (1,)),  # both hyper-threads of one core
        ({33}, 1, (1,)),
        ({0, 1, 2, 33}, 3, (3,)),
        (set(range(20)), 20, (16, 4)),
        ({16, 48, 17, 0}, 3, (2, 1)),
    ],
)
def test_linux_processors_affinity_mask_limits_cores(tree, mask, cores, shares):
    expected = Processors(64, len(mask), cores, nodes=shares)
    assert linux_processors(mask, tree(TWO_SOCKETS)) == expected


def test_linux_processors_offline_cpus_do_not_count(tree):
    root = tree(
        SMT_LAPTOP,
        {f"{CPUS}/online": "0-3"},
        topology([(cpu,) for cpu in range(4)]),
    )
    assert linux_processors(set(range(8)), root) == Processors(4, 4, 4, nodes=(4,))


def test_linux_processors_without_sys_counts_every_logical_cpu(tmp_path):
    assert linux_processors({0, 1, 5}, tmp_path) == Processors(3, 3, 3, nodes=(3,))


@pytest.mark.parametrize("garbage", ["", "x", "3-", "-1", "0-99999999999", "7", "\x00\x01", "é,1"])
def test_linux_processors_garbage_counts_every_logical_cpu(tree, garbage):
    files = dict.fromkeys([*topology([(0, 1)]), *nodes(""), f"{CPUS}/online"], garbage)
    files[f"{CPUS}/cpu0/cpu_capacity"] = garbage
    files["proc/self/mountinfo"] = files["proc/self/cgroup"] = garbage
    found = linux_processors({0, 1}, tree(files))
    assert (found.allowed, found.cores, found.nodes, found.quota) == (2, 2, (2,), None)


def test_linux_processors_emulated_nodes_with_equal_cpus_count_once(tree):
    root = tree(topology([(cpu,) for cpu in range(4)]), nodes(*["0-3"] * 8), nodes("0-3", ""))
    assert linux_processors({0, 1, 2, 3}, root).nodes == (4,)


def test_linux_processors_efficiency_cores_of_intel_are_left_out(tree):
    root = tree(topology([(0, 1), (2, 3), (4,), (5,)]), {"sys/devices/cpu_atom/cpus": "4-5"})
    assert linux_processors(set(range(6)), root) == Processors(6, 6, 2, 2, (2,))
    assert linux_processors({4, 5}, root).cores == 2


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([1024] * 4 + [400] * 4, 4),
        ([1024] + [900] * 3 + [300] * 4, 4),
        ([1024] * 2 + [800] * 6, 8),
        ([1024] * 4, 4),
    ],
)
def test_linux_processors_capacities_select_fastest_set(tree, capacities, cores):
    files = {f"{CPUS}/cpu{i}/cpu_capacity": str(value) for i, value in enumerate(capacities)}
    found = linux_processors(set(range(len(capacities))), tree(files))
    assert (found.cores, found.slower) == (cores, len(capacities) - cores)


def version_2(path, limits):
    """Files of version 2: the group of this process, and the limits of some groups."""
    return {
        "proc/self/mountinfo": VERSION_2,
        "proc/self/cgroup": f"0::{path}",
        **{f"sys/fs/cgroup{group}/cpu.max": limit for group, limit in limits.items()},
    }


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"/a/b": "150000 100000"}, 1.5),
        ({"/a/b": "300000 100000"}, 3.0),
        ({"/a/b": "max 100000"}, None),
        ({}, None),
        ({"/a": "200000 100000"}, 2.0),
        ({"/a": "200000 100000", "/a/b": "max 100000"}, 2.0),
        ({"/a": "200000 100000", "/a/b": "400000 100000"}, 2.0),
        ({"/a": "200000 100000", "/a/b": "50000 50000"}, 1.0),
        ({"": "100000 100000"}, 1.0),
        ({"/other": "100000 100000", "/a/b/below": "100000 100000"}, None),
        ({"/a/b": "abc"}, None),
        ({"/a/b": "-5 100000"}, None),
        ({"/a/b": "100000 0"}, None),
    ],
)
def test_cpu_quota_version_2_is_smallest_of_group_and_those_above(tree, limits, expected):
    assert cpu_quota(tree(version_2("/a/b", limits))) == expected


def test_cpu_quota_container_with_path_of_host_reads_mounted_group(tree):
    files = version_2("/docker/7f", {"": "250000 100000"})
    for mounted in ("/docker/7f", "/docker", "/elsewhere", "/../.."):
        files["proc/self/mountinfo"] = VERSION_2.replace(" / ", f" {mounted} ", 1)
        assert cpu_quota(tree(files)) == 2.5
    files["proc/self/cgroup"] = "0::/../../outside"
    assert cpu_quota(tree(files)) == 2.5


def version_1(quota, period="100000", group="/docker/7f"):
    folder = f"sys/fs/cgroup/cpu,cpuacct{group}"
    return {
        "proc/self/mountinfo": f"garbage\n{VERSION_1}\n35 31 0:3 / /m rw - cgroup cgroup rw,memory",
        "proc/self/cgroup": f"5:memory:/x\n4:cpu,cpuacct:{group}\n0::/init",
        f"{folder}/cpu.cfs_quota_us": quota,
        f"{folder}/cpu.cfs_period_us": period,
    }


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("150000", "100000", 1.5), ("-1", "100000", None), ("25000", "50000", 0.5), ("x", "", None)],
)
def test_cpu_quota_version_1_is_quota_by_period(tree, quota, period, expected):
    assert cpu_quota(tree(version_1(quota, period))) == expected


def test_cpu_quota_mount_with_space_is_found(tree):
    files = {
        "proc/self/mountinfo": VERSION_2.replace("/sys/fs/cgroup", r"/sys/c\040g"),
        "proc/self/cgroup": "0::/",
        "sys/c g/cpu.max": "200000 100000",
    }
    assert cpu_quota(tree(files)) == 2.0


def test_linux_processors_reads_quota(tree):
    root = tree(SMT_LAPTOP, version_2("/", {"": "150000 100000"}))
    assert linux_processors(set(range(8)), root).quota == 1.5


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            {"hw.logicalcpu": 8, "hw.physicalcpu": 8, "hw.perflevel0.physicalcpu": 4},
            Processors(8, 8, 4, 4, (4,)),
        ),
        ({"hw.logicalcpu": 8, "hw.physicalcpu": 4}, Processors(8, 8, 4, 0, (4,))),
        ({"hw.logicalcpu": 6}, Processors(6, 6, 6, 0, (6,))),
    ],
)
def test_mac_processors_counts_performance_cores(numbers, expected):
    assert mac_processors(numbers.get) == expected


class Kernel32:
    """The functions of Windows for two groups of CPUs: 0 to 3 (two fast cores), and 64 (slow)."""

    def __init__(self, mask=None):
        self._mask = mask
        records = [
            self._record(0, 1, [(0b0011, 0)]),
            self._record(0, 1, [(0b1100, 0)]),
            self._record(0, 0, [(0b1, 1)]),
            self._record(1, 0, [(0b1111, 0)]),
            self._record(1, 0, [(0b1, 1)], count=0),
            struct.pack("<LL", 2, 16) + bytes(8),  # a cache
        ]
        data = b"".join(records)

        def processor_information(kind, buffer, size):
            assert kind == 0xFFFF
            if buffer is None:
                size._obj.value = len(data)
                return 0
            ctypes.memmove(buffer, data, len(data))
            return 1

        def group_affinity(process, count, group):
            group._obj.value = 0
            return int(mask is not None)

        def affinity_mask(process, found, system):
            found._obj.value = mask
            return 1

        self.GetLogicalProcessorInformationEx = processor_information
        self.GetProcessGroupAffinity = group_affinity
        self.GetProcessAffinityMask = affinity_mask
        self.GetCurrentProcess = Handle()

    def _record(self, kind, efficiency, masks, count=None):
        groups = b"".join(struct.pack("<QHHHH", mask, group, 0, 0, 0) for mask, group in masks)
        start = bytes([0, efficiency]) if kind == 0 else bytes(2)
        body = start + bytes(20) + struct.pack("<H", len(masks) if count is None else count)
        return struct.pack("<LL", kind, 8 + len(body + groups)) + body + groups


class Handle:
    def __call__(self):
        return 1


def test_windows_processors_counts_cores_of_highest_class():
    found = windows_processors.detect(Kernel32())
    counted = count_cores(found.allowed, found.cores, found.nodes, found.slow)
    assert counted == Processors(machine=5, allowed=5, cores=2, slower=1, nodes=(2,))


def test_windows_processors_affinity_mask_limits_cores():
    found = windows_processors.detect(Kernel32(mask=0b0011))
    counted = count_cores(found.allowed, found.cores, found.nodes, found.slow)
    assert counted == Processors(machine=5, allowed=2, cores=1, nodes=(1,))


def test_windows_processors_failing_call_gives_none():
    failing = Kernel32()
    failing.GetLogicalProcessorInformationEx = lambda kind, buffer, size: 0
    # A plain function: like those of ctypes, it accepts the attributes argtypes and restype.
    assert windows_processors.detect(failing) is None


@pytest.mark.skipif(sys.platform != "linux", reason="affinity masks")
def test_detect_counts_at_most_the_affinity_mask():
    found = processors.detect()
    assert 1 <= found.cores <= found.allowed == len(os.sched_getaffinity(0))
    assert sum(found.nodes) == found.cores
