"""Logs of jobs: what is written is what is read, also when the file is huge, binary, or has lost its middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from semtask.executors.log_reader import MAX_LINE_BYTES, MAX_TAIL_BYTES
from semtask.executors.output import LogFiles
from semtask.host.filesystem import punch_hole
from tests.executors.support import BLOCK, JOB, needs_punching, write_log


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    return LogFiles(tmp_path / "jobs")


def read_all(files: LogFiles, limit: int = 65_536) -> tuple[bytes, int]:
    """Everything that is left of the log, and how much was omitted on the way."""
    data, offset, omitted = bytearray(), 0, 0
    while True:
        chunk = files.read(JOB, 1, "stdout", offset, limit)
        data += chunk.data
        omitted += chunk.omitted_bytes
        if chunk.next_offset == offset:
            return bytes(data), omitted
        offset = chunk.next_offset


# --- open and remove -------------------------------------------------------------------------------------------------


def test_a_log_is_private_and_is_not_inherited_by_exec(files: LogFiles, tmp_path: Path) -> None:
    out, err = files.open(JOB, 3, split=False)
    try:
        assert err is None
        assert not os.get_inheritable(out)
        path = files.path(JOB, 3)
        assert path == tmp_path / "jobs" / JOB[-2:] / f"{JOB}.3.log"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        os.write(out, b"one")
        os.write(out, b"two")
        assert path.read_bytes() == b"onetwo"
    finally:
        os.close(out)


def test_a_split_stderr_has_a_log_of_its_own(files: LogFiles) -> None:
    out, err = files.open(JOB, 1, split=True)
    assert err is not None
    os.write(out, b"out")
    os.write(err, b"err")
    os.close(out)
    os.close(err)
    assert files.read(JOB, 1, "stdout", 0, 100).data == b"out"
    assert files.read(JOB, 1, "stderr", 0, 100).data == b"err"


def test_a_claim_number_that_comes_again_begins_with_an_empty_log(files: LogFiles) -> None:
    write_log(files, b"of a claim that a power cut has undone")
    write_log(files, b"new")
    assert files.read(JOB, 1, "stdout", 0, 100).data == b"new"


def test_a_planted_symlink_is_not_followed(files: LogFiles, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = files.path(JOB, 1)
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        files.open(JOB, 1, split=False)
    with pytest.raises(OSError, match="symbolic"):
        files.read(JOB, 1, "stdout", 0, 100)
    assert victim.read_text() == "precious"


def test_a_pipe_in_the_place_of_a_log_does_not_block_the_reader(files: LogFiles) -> None:
    files.path(JOB, 1).parent.mkdir(parents=True)
    os.mkfifo(files.path(JOB, 1))
    assert files.read(JOB, 1, "stdout", 0, 100).data == b""
    assert files.last_lines(JOB, 1, "stdout", 5) == []


def test_when_stderr_cannot_be_opened_stdout_is_closed_again(files: LogFiles) -> None:
    files.path(JOB, 1, "stderr").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(IsADirectoryError):
        files.open(JOB, 1, split=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_remove_deletes_both_logs_of_this_claim_only_and_may_be_repeated(files: LogFiles) -> None:
    for claim_no in (1, 2):
        for fd in files.open(JOB, claim_no, split=True):
            assert fd is not None
            os.close(fd)
    files.remove(JOB, 1)
    files.remove(JOB, 1)
    left = sorted(path.name for path in files.path(JOB, 1).parent.iterdir())
    assert left == [f"{JOB}.2.err", f"{JOB}.2.log"]


# --- read ------------------------------------------------------------------------------------------------------------


def test_a_log_that_is_not_there_reads_as_empty(files: LogFiles) -> None:
    assert files.read(JOB, 1, "stdout", 5, 100) == (b"", 0, 0, 0)
    assert files.read(JOB, 1, "stderr", -5, 100) == (b"", 0, 0, 0)
    assert files.last_lines(JOB, 1, "stdout", 5) == []


@pytest.mark.parametrize(
    ("offset", "limit", "data", "next_offset"),
    [
        (0, 4, b"0123", 4),
        (4, 100, b"456789", 10),
        (10, 100, b"", 10),
        (11, 100, b"", 10),
        (-3, 100, b"789", 10),
        (-3, 1, b"7", 8),
        (-99, 2, b"01", 2),
    ],
)
def test_read_positions(files: LogFiles, offset: int, limit: int, data: bytes, next_offset: int) -> None:
    write_log(files, b"0123456789")
    assert files.read(JOB, 1, "stdout", offset, limit) == (data, next_offset, 0, 10)


def test_binary_and_multibyte_output_survives_any_chunk_border(files: LogFiles) -> None:
    written = bytes(range(256)) * 40 + "größer als 世界 🙂\n".encode() * 300 + b"\0" * 5000
    write_log(files, written)
    for limit in (1, 7, 4096, 1 << 20):
        assert read_all(files, limit) == (written, 0)


@needs_punching
def test_the_cut_out_middle_is_skipped_and_counted(files: LogFiles) -> None:
    written = os.urandom(20 * BLOCK + 17)
    write_log(files, written, hole=(4 * BLOCK, 15 * BLOCK))
    head, tail = written[: 4 * BLOCK], written[15 * BLOCK :]
    assert read_all(files) == (head + tail, 11 * BLOCK)

    upto_the_hole = files.read(JOB, 1, "stdout", 10, 1 << 20)
    assert upto_the_hole == (head[10:], 4 * BLOCK, 0, len(written))
    from_the_hole_on = files.read(JOB, 1, "stdout", 4 * BLOCK, 5)
    assert from_the_hole_on == (tail[:5], 15 * BLOCK + 5, 11 * BLOCK, len(written))
    from_inside = files.read(JOB, 1, "stdout", 14 * BLOCK, 5)
    assert from_inside == (tail[:5], 15 * BLOCK + 5, BLOCK, len(written))
    from_the_end = files.read(JOB, 1, "stdout", -len(tail) - BLOCK, 5)
    assert from_the_end.omitted_bytes == BLOCK


@needs_punching
def test_a_hole_up_to_the_end_is_all_omitted(files: LogFiles) -> None:
    write_log(files, b"x" * BLOCK)
    os.truncate(files.path(JOB, 1), 5 * BLOCK)
    assert files.read(JOB, 1, "stdout", BLOCK, 100) == (b"", 5 * BLOCK, 4 * BLOCK, 5 * BLOCK)


@needs_punching
def test_nul_bytes_of_the_job_are_kept_and_those_of_the_hole_are_never_shown(files: LogFiles) -> None:
    page_of_nul = b"\0" * BLOCK
    written = b"h" * BLOCK + page_of_nul + b"x" * (6 * BLOCK) + page_of_nul + b"t" * BLOCK
    write_log(files, written, hole=(2 * BLOCK, 8 * BLOCK))
    left, omitted = read_all(files)
    assert left == b"h" * BLOCK + page_of_nul + page_of_nul + b"t" * BLOCK
    assert omitted == 6 * BLOCK


# --- last lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "n", "lines"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\nb\n", 50, ["a", "b"]),
        (b"\n\n\n", 2, ["", ""]),
        (b"a\n\nb", 3, ["a", "", "b"]),
        (b"a\r\x0bb\x1b[0m\xe2\x80\xa8c\n", 5, ["a\r\x0bb\x1b[0m\u2028c"]),
        (b"ok \xff\xfe \xe4\xb8", 1, ["ok \ufffd\ufffd \ufffd"]),
    ],
)
def test_last_lines(files: LogFiles, written: bytes, n: int, lines: list[str]) -> None:
    write_log(files, written)
    assert files.last_lines(JOB, 1, "stdout", n) == lines


def test_last_lines_over_many_blocks_equal_those_of_the_whole(files: LogFiles) -> None:
    written = "".join(f"{i} {'世' * (i % 300)}\n" for i in range(5000))
    write_log(files, written.encode())
    assert files.last_lines(JOB, 1, "stdout", 3000) == written.split("\n")[-3001:-1]


def test_of_a_long_line_the_end_is_shown_and_the_rest_is_counted(files: LogFiles) -> None:
    write_log(files, b"first\n" + b"x" * 100_000 + b"END\nlast\n")
    lines = files.last_lines(JOB, 1, "stdout", 10)
    marker = f"[... {100_003 - MAX_LINE_BYTES:,} bytes of this line omitted ...] "
    assert lines == ["first", marker + "x" * (MAX_LINE_BYTES - 3) + "END", "last"]


def test_a_line_of_a_gigabyte_costs_a_few_megabytes_of_memory(files: LogFiles) -> None:
    command = "import os\nfor _ in range(128): os.write(1, b'y' * (8 << 20))\nos.write(1, b'END')"
    out, _ = files.open(JOB, 1, split=False)
    subprocess.run([sys.executable, "-c", command], stdout=out, check=True)
    os.close(out)
    tracemalloc.start()
    try:
        lines = files.last_lines(JOB, 1, "stdout", 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        files.remove(JOB, 1)
    assert lines[0] == f"[... {(1 << 30) + 3 - MAX_TAIL_BYTES:,} bytes omitted ...]"
    assert len(lines) == 2
    assert lines[1].endswith("yyyEND")
    assert len(lines[1]) < MAX_LINE_BYTES + 100
    assert peak < 5 * MAX_TAIL_BYTES


@needs_punching
def test_a_hole_is_one_line(files: LogFiles) -> None:
    line = b"0123456789abcde\n"
    written = line * (20 * BLOCK // len(line))
    write_log(files, written, hole=(2 * BLOCK, 18 * BLOCK))
    lines = files.last_lines(JOB, 1, "stdout", 100_000)
    text = line.decode().strip()
    count = 2 * BLOCK // len(line)
    assert lines == [text] * count + [f"[... {16 * BLOCK:,} bytes omitted ...]"] + [text] * count


@needs_punching
def test_a_line_that_the_hole_cut_in_two_shows_both_ends(files: LogFiles) -> None:
    write_log(files, b"begin" + b"x" * (9 * BLOCK) + b"end\nlast\n", hole=(BLOCK, 9 * BLOCK))
    lines = files.last_lines(JOB, 1, "stdout", 10)
    assert lines[0] == "begin" + "x" * (BLOCK - 5)
    assert lines[1] == f"[... {8 * BLOCK:,} bytes omitted ...]"
    assert lines[2] == "xxxxxend"
    assert lines[3:] == ["last"]


@needs_punching
def test_punching_while_reading_shows_no_byte_that_was_not_written(files: LogFiles) -> None:
    """A thread cuts page after page out under a reader: each byte that it gets is right, never a NUL of the hole."""
    pages, page = 8192, 4096
    written = b"".join(bytes([65 + i % 26]) * page for i in range(pages))
    write_log(files, written)
    fd = os.open(files.path(JOB, 1), os.O_WRONLY)
    punched = 0

    def punch_all() -> None:
        nonlocal punched
        for i in range(1, pages - 1):
            punch_hole(fd, i * page, page)
            punched = i

    puncher = threading.Thread(target=punch_all)
    puncher.start()
    reads = 0
    try:
        while puncher.is_alive():
            chunk = files.read(JOB, 1, "stdout", max(0, punched - 4) * page, 64 * page)
            assert chunk.data == written[chunk.next_offset - len(chunk.data) : chunk.next_offset]
            reads += 1
    finally:
        puncher.join()
        os.close(fd)
    assert reads > 10
    assert read_all(files) == (written[:page] + written[-page:], (pages - 2) * page)
