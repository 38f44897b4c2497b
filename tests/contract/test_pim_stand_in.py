"""The stand-in of UPMEM's host API keeps the limits of the real one: what it lets through would run on the memory."""

import ctypes
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
from rma_launch_driver import requires_root
from upmem_support import STAND_IN, build_libraries, compile_program

TASKLETS = 4
UNITS = 64
READ, WRITE, SUM, COUNT, HANG, ALLOCATE, ALLOCATE_ANEW = range(7)


class Error(IntEnum):
    """dpu_error_t, by its documented order."""

    OK = 0
    ALLOCATION = 4
    INVALID_DPU_SET = 5
    INVALID_WRAM_ACCESS = 8
    INVALID_MRAM_ACCESS = 10
    INVALID_SYMBOL_ACCESS = 11
    TRANSFER_ALREADY_SET = 13
    NO_PROGRAM_LOADED = 14
    DPU_ALREADY_RUNNING = 18
    INVALID_MEMORY_TRANSFER = 19
    INVALID_LAUNCH_POLICY = 20
    DPU_FAULT = 21
    ELF_INVALID_FILE = 22
    ELF_NO_SUCH_FILE = 23
    INVALID_PROFILE = 26
    UNKNOWN_SYMBOL = 27


ASYNCHRONOUS, SYNCHRONOUS = 0, 1
TO_DPU, FROM_DPU = 0, 1


class Set(ctypes.Structure):
    """struct dpu_set_t."""

    _fields_ = (("kind", ctypes.c_int), ("_", ctypes.c_int), ("ranks", ctypes.c_uint32), ("list", ctypes.c_void_p))

    def unit(self, number: int) -> "Set":
        """The set of one unit of the first rank, as DPU_FOREACH gives it."""
        iterator = _library.dpu_set_dpu_iterator_from(ctypes.byref(self))
        for _ in range(number):
            _library.dpu_set_dpu_iterator_next(ctypes.byref(iterator))
        return Set.from_buffer_copy(iterator.next)


class DpuIterator(ctypes.Structure):
    """struct dpu_set_dpu_iterator_t."""

    _fields_ = (("set", Set), ("count", ctypes.c_uint32), ("next", Set), ("has_next", ctypes.c_bool))


_library: ctypes.CDLL


@pytest.fixture(scope="module")
def dpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    global _library  # noqa: PLW0603 (a set is asked for its units)
    _library = ctypes.CDLL(str(build_libraries(tmp_path_factory.mktemp("libdpu")).dpu))
    _library.dpu_set_dpu_iterator_from.restype = DpuIterator
    for name in ("dpu_free", "dpu_sync"):
        getattr(_library, name).argtypes = [Set]
    _library.dpu_launch.argtypes = [Set, ctypes.c_int]
    _library.dpu_load.argtypes = [Set, ctypes.c_char_p, ctypes.c_void_p]
    for name in ("dpu_copy_to", "dpu_copy_from"):
        getattr(_library, name).argtypes = [Set, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    _library.dpu_prepare_xfer.argtypes = [Set, ctypes.c_void_p]
    _library.dpu_push_xfer.argtypes = [
        Set, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_int,
    ]  # fmt: skip
    return _library


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("program") / "try.dpu"
    done = compile_program(STAND_IN / "try.c", made, f"-DNR_TASKLETS={TASKLETS}")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def bare(dpu: ctypes.CDLL) -> Iterator[Set]:
    """A rank without a program."""
    made = Set()
    assert dpu.dpu_alloc_ranks(1, b"backend=simulator", ctypes.byref(made)) == Error.OK
    yield made
    assert dpu.dpu_free(made) == Error.OK


@pytest.fixture
def rank(dpu: ctypes.CDLL, bare: Set, program: Path) -> Set:
    assert dpu.dpu_load(bare, os.fsencode(program), None) == Error.OK
    return bare


def run(dpu: ctypes.CDLL, rank: Set, what: int, start: int = 0, to: int = 0, size: int = 0) -> Error:
    asked = struct.pack("4I", what, start, to, size)
    assert dpu.dpu_copy_to(rank, b"asked", 0, asked, len(asked)) == Error.OK
    return Error(dpu.dpu_launch(rank, SYNCHRONOUS))


def answers(dpu: ctypes.CDLL, unit: Set) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(8 * TASKLETS)
    assert dpu.dpu_copy_from(unit, b"answers", 0, buffer, len(buffer.raw)) == Error.OK
    return struct.unpack(f"{TASKLETS}Q", buffer.raw)


@pytest.mark.parametrize(
    ("symbol", "offset", "length", "error"),
    [
        (b"area", 0, 4096, Error.OK),
        (b"area", 8, 16, Error.OK),
        (b"area", 4, 8, Error.INVALID_MRAM_ACCESS),
        (b"area", 0, 12, Error.INVALID_MRAM_ACCESS),
        (b"area", 8, 4096, Error.INVALID_SYMBOL_ACCESS),
        (b"area", 4104, 0, Error.INVALID_SYMBOL_ACCESS),
        (b"asked", 4, 4, Error.OK),
        (b"asked", 2, 4, Error.INVALID_WRAM_ACCESS),
        (b"asked", 0, 6, Error.INVALID_WRAM_ACCESS),
        (b"asked", 0, 20, Error.INVALID_SYMBOL_ACCESS),
        (b"buffer", 0, 8, Error.UNKNOWN_SYMBOL),
        (b"nothing", 0, 8, Error.UNKNOWN_SYMBOL),
        (b"__sys_used_mram_end", (64 << 20) - 4096 - 8, 8, Error.OK),
        (b"__sys_used_mram_end", (64 << 20) - 4096, 8, Error.INVALID_SYMBOL_ACCESS),
    ],
)
def test_transfers_of_the_host(
    dpu: ctypes.CDLL, rank: Set, symbol: bytes, offset: int, length: int, error: Error
) -> None:
    content = bytes(range(256)) * 17
    buffer = ctypes.create_string_buffer(len(content))
    assert dpu.dpu_copy_to(rank, symbol, offset, content, length) == error
    unit = rank.unit(UNITS - 1)
    assert dpu.dpu_copy_from(unit, symbol, offset, buffer, length) == error
    assert error != Error.OK or buffer.raw[:length] == content[:length]
    assert dpu.dpu_prepare_xfer(unit, ctypes.addressof(buffer)) == Error.OK
    assert dpu.dpu_push_xfer(rank, FROM_DPU, symbol, offset, length, 0) == error


@pytest.mark.parametrize("what", [READ, WRITE])
@pytest.mark.parametrize(
    ("mram", "wram", "size", "error"),
    [
        (0, 0, 8, Error.OK),
        (2048, 2048, 2048, Error.OK),
        (0, 0, 0, Error.DPU_FAULT),
        (0, 0, 4, Error.DPU_FAULT),
        (0, 0, 12, Error.DPU_FAULT),
        (0, 0, 2056, Error.DPU_FAULT),
        (4, 0, 8, Error.DPU_FAULT),
        (0, 4, 8, Error.DPU_FAULT),
        ((64 << 20) - 8, 0, 16, Error.DPU_FAULT),
        (0, 1 << 20, 8, Error.DPU_FAULT),
    ],
)
def test_transfers_of_a_unit(
    dpu: ctypes.CDLL, rank: Set, what: int, mram: int, wram: int, size: int, error: Error
) -> None:
    ends = (mram, wram) if what == READ else (wram, mram)
    assert dpu.dpu_copy_to(rank, b"area", 0, b"\x2a" * 4096, 4096) == Error.OK
    if wram > 4096:  # the program itself would touch it
        what, ends = READ, (mram, 1 << 14)
    assert run(dpu, rank, what, *ends, size) == error
    if error == Error.OK and what == READ:
        assert answers(dpu, rank.unit(3))[0] == 42


def test_a_unit_in_fault_stays_so_until_it_is_loaded_again(dpu: ctypes.CDLL, rank: Set, program: Path) -> None:
    assert run(dpu, rank, READ, size=4) == Error.DPU_FAULT
    assert run(dpu, rank, SUM) == Error.DPU_FAULT
    assert dpu.dpu_load(rank, os.fsencode(program), None) == Error.OK
    assert run(dpu, rank, SUM) == Error.OK


def test_every_unit_has_memories_of_its_own(dpu: ctypes.CDLL, rank: Set) -> None:
    buffers = [ctypes.create_string_buffer(bytes([number] * 8), 8) for number in range(UNITS)]
    for number in range(UNITS):
        assert dpu.dpu_prepare_xfer(rank.unit(number), ctypes.addressof(buffers[number])) == Error.OK
    assert dpu.dpu_push_xfer(rank, TO_DPU, b"area", 0, 8, 0) == Error.OK
    assert run(dpu, rank, READ, size=8) == Error.OK
    assert [answers(dpu, rank.unit(number))[0] for number in range(UNITS)] == list(range(UNITS))


def test_variables_outlive_a_launch_and_not_a_load(dpu: ctypes.CDLL, rank: Set, program: Path) -> None:
    def started() -> int:
        buffer = ctypes.create_string_buffer(4)
        assert dpu.dpu_copy_from(rank.unit(5), b"started", 0, buffer, 4) == Error.OK
        return int.from_bytes(buffer.raw, "little")

    assert started() == 7
    for times in (1, 2):
        assert run(dpu, rank, SUM) == Error.OK
        assert started() == 7 + times * TASKLETS
    assert dpu.dpu_load(rank, os.fsencode(program), None) == Error.OK
    assert started() == 7


def test_tasklets_meet_at_a_barrier(dpu: ctypes.CDLL, rank: Set) -> None:
    for size in (10, 20):
        assert run(dpu, rank, SUM, size=size) == Error.OK
        for number in (0, 17, UNITS - 1):
            assert answers(dpu, rank.unit(number)) == (sum(range(TASKLETS)) + TASKLETS * size,) * TASKLETS


def test_a_mutex_lets_one_in(dpu: ctypes.CDLL, rank: Set) -> None:
    assert run(dpu, rank, COUNT, size=5) == Error.OK
    for number in (0, 1, UNITS - 1):
        assert max(answers(dpu, rank.unit(number))) == 5 * TASKLETS


def test_tasklets_that_wait_for_each_other_are_found_out(dpu: ctypes.CDLL, rank: Set) -> None:
    assert run(dpu, rank, HANG) == Error.DPU_FAULT


def test_the_heap_is_what_the_wram_has_left_and_outlives_a_launch(dpu: ctypes.CDLL, rank: Set) -> None:
    each = 10_000  # four of them fit once
    assert run(dpu, rank, ALLOCATE_ANEW, size=each) == Error.OK
    assert run(dpu, rank, ALLOCATE_ANEW, size=each) == Error.OK
    assert run(dpu, rank, ALLOCATE, size=each) == Error.DPU_FAULT


def test_what_is_done_out_of_order(dpu: ctypes.CDLL, bare: Set, program: Path) -> None:
    buffer = ctypes.create_string_buffer(8)
    assert dpu.dpu_launch(bare, SYNCHRONOUS) == Error.NO_PROGRAM_LOADED
    assert dpu.dpu_copy_to(bare, b"area", 0, b"x" * 8, 8) == Error.NO_PROGRAM_LOADED
    assert dpu.dpu_load(bare, os.fsencode(program), None) == Error.OK
    assert dpu.dpu_copy_from(bare, b"area", 0, buffer, 8) == Error.INVALID_DPU_SET
    assert dpu.dpu_launch(bare, 9) == Error.INVALID_LAUNCH_POLICY
    assert dpu.dpu_push_xfer(bare, 9, b"area", 0, 8, 0) == Error.INVALID_MEMORY_TRANSFER
    assert dpu.dpu_prepare_xfer(bare.unit(0), ctypes.addressof(buffer)) == Error.OK
    assert dpu.dpu_prepare_xfer(bare.unit(0), ctypes.addressof(buffer)) == Error.TRANSFER_ALREADY_SET
    assert run(dpu, bare, SUM) == Error.OK
    assert dpu.dpu_launch(bare, ASYNCHRONOUS) == Error.OK
    assert dpu.dpu_launch(bare, ASYNCHRONOUS) == Error.DPU_ALREADY_RUNNING
    assert dpu.dpu_sync(bare) == Error.OK


def test_what_is_no_program(dpu: ctypes.CDLL, bare: Set, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    assert dpu.dpu_load(bare, os.fsencode(tmp_path / "none"), None) == Error.ELF_NO_SUCH_FILE
    assert dpu.dpu_load(bare, os.fsencode(tmp_path / "text"), None) == Error.ELF_INVALID_FILE
    assert dpu.dpu_load(bare, b"/bin/true", None) == Error.ELF_INVALID_FILE


@pytest.mark.parametrize(
    ("declared", "region"),
    [
        ("uint8_t large[64 << 10];\n#define HERE large[asked]", "wram"),
        ("__mram_noinit uint8_t area[(64 << 20) + 8];\n#define HERE asked", "mram"),
    ],
)
def test_a_program_that_does_not_fit_is_not_linked(tmp_path: Path, declared: str, region: str) -> None:
    source = tmp_path / "large.c"
    source.write_text(
        "#include <attributes.h>\n#include <defs.h>\n#include <stdint.h>\n__host uint32_t asked;\n"
        f"{declared}\nint main(void) {{ HERE = 1; return 0; }}\n"
    )
    done = compile_program(source, tmp_path / "large.dpu")
    assert done.returncode == 1
    assert f"will not fit in region '{region}'" in done.stderr
    assert not (tmp_path / "large.dpu").exists()


@pytest.mark.parametrize(
    ("profile", "error"),
    [
        (b"backend=simulator", Error.ALLOCATION),  # of two ranks, where there is one
        (b"backend=fpga", Error.INVALID_PROFILE),
        (b"backend", Error.INVALID_PROFILE),
        (b"backend=hw,rankPath=/dev/none", Error.ALLOCATION),
        (b"backend=hw,rankPath=/etc/passwd", Error.ALLOCATION),
    ],
)
def test_what_cannot_be_allocated(dpu: ctypes.CDLL, profile: bytes, error: Error) -> None:
    assert dpu.dpu_alloc_ranks(2, profile, ctypes.byref(Set())) == error


def test_a_rank_has_one_owner(dpu: ctypes.CDLL, tmp_path: Path) -> None:
    requires_root()
    os.mknod(tmp_path / "dpu_rank0", 0o666 | 0o020000, os.makedev(1, 3))
    profile = b"backend=hw,rankPath=" + os.fsencode(tmp_path / "dpu_rank0")
    first, second = Set(), Set()
    assert dpu.dpu_alloc_ranks(1, profile, ctypes.byref(first)) == Error.OK
    assert dpu.dpu_alloc_ranks(1, profile, ctypes.byref(second)) == Error.ALLOCATION
    assert dpu.dpu_free(first) == Error.OK
    assert dpu.dpu_alloc_ranks(1, profile, ctypes.byref(second)) == Error.OK
    assert dpu.dpu_free(second) == Error.OK
