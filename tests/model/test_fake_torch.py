"""The fake torch manages memory like the real one."""

import gc
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.fixture
def tensor(torch: ModuleType) -> Callable[[int], Any]:
    """Make a tensor of so many bytes."""
    return lambda size: torch.empty(size, dtype=torch.uint8)


def figures(torch: ModuleType) -> dict[str, int]:
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "free": torch.cuda.mem_get_info()[0],
    }


def test_queries_do_not_initialize_the_gpu(torch: ModuleType) -> None:
    torch.cuda.empty_cache()
    assert torch.cuda.is_available()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 0)
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("use", ["synchronize", "ipc_collect", "mem_get_info"])
def test_other_calls_initialize_the_gpu(torch: ModuleType, use: str) -> None:
    getattr(torch.cuda, use)()
    assert torch.cuda.is_initialized()


def test_memory_of_a_dropped_tensor_stays_reserved_until_the_cache_is_emptied(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    kept = tensor(1 * GIB)
    dropped = tensor(2 * GIB)
    assert figures(torch) == {"allocated": 3 * GIB, "reserved": 3 * GIB, "free": 1 * GIB}
    del dropped
    assert figures(torch) == {"allocated": 1 * GIB, "reserved": 3 * GIB, "free": 1 * GIB}
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 1 * GIB, "reserved": 1 * GIB, "free": 3 * GIB}
    del kept
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 0, "reserved": 0, "free": 4 * GIB}


def test_emptying_the_cache_keeps_memory_in_use(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    held = [tensor(1 * GIB), tensor(1 * GIB)]
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 2 * GIB, "reserved": 2 * GIB, "free": 2 * GIB}
    assert len(held) == 2


def test_cached_memory_is_split_and_joined_for_the_next_tensors(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    tensor(4 * GIB)
    quarters = [tensor(1 * GIB) for _ in range(4)]
    assert figures(torch) == {"allocated": 4 * GIB, "reserved": 4 * GIB, "free": 0}
    del quarters[1:3]
    half = tensor(2 * GIB)
    assert figures(torch) == {"allocated": 4 * GIB, "reserved": 4 * GIB, "free": 0}
    assert half.nbytes == 2 * GIB
    assert torch.cuda.memory_stats()["num_ooms"] == 0


def test_the_smallest_cached_block_that_fits_is_used(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    three_and_one = [tensor(3 * GIB), tensor(1 * GIB)]
    three_and_one.clear()
    three_and_one = [tensor(1 * GIB), tensor(3 * GIB)]
    assert torch.cuda.memory_stats()["num_alloc_retries"] == 0


def test_a_segment_partly_in_use_is_not_returned_to_the_device(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    tensor(4 * GIB)
    splinter = tensor(512)
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 512, "reserved": 4 * GIB, "free": 0}
    del splinter
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 0, "reserved": 0, "free": 4 * GIB}


def test_unused_segments_are_returned_before_a_request_fails(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    two = [tensor(2 * GIB), tensor(2 * GIB)]
    two.clear()
    assert tensor(3 * GIB).nbytes == 3 * GIB
    assert torch.cuda.memory_stats()["num_alloc_retries"] == 1


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        pytest.param(1, 512, 2 * MIB, id="smallest"),
        pytest.param(513, 1024, 2 * MIB, id="rounded to 512 bytes"),
        pytest.param(MIB, MIB, 2 * MIB, id="last small one"),
        pytest.param(MIB + 1, MIB + 512, 20 * MIB, id="first large one"),
        pytest.param(10 * MIB, 10 * MIB, 10 * MIB, id="a segment of the same size"),
        pytest.param(11 * MIB, 11 * MIB, 12 * MIB, id="segment rounded to 2 MiB"),
    ],
)
def test_memory_is_reserved_in_segments(
    torch: ModuleType,
    tensor: Callable[[int], Any],
    size: int,
    allocated: int,
    reserved: int,
) -> None:
    tensor_in_use = tensor(size)
    assert figures(torch) == {
        "allocated": allocated,
        "reserved": reserved,
        "free": 4 * GIB - reserved,
    }
    assert tensor_in_use.nbytes == size


def test_out_of_memory_is_the_real_class_with_the_real_message(
    torch: ModuleType, tensor: Callable[[int], Any]
) -> None:
    tensor_in_use = tensor(3 * GIB)
    with pytest.raises(RuntimeError) as failed:
        tensor(2 * GIB)
    assert tensor_in_use.nbytes == 3 * GIB
    assert failed.type is torch.OutOfMemoryError is torch.cuda.OutOfMemoryError
    assert (failed.type.__module__, failed.type.__qualname__) == ("torch", "OutOfMemoryError")
    assert str(failed.value).startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4.00 GiB "
        "of which 1.00 GiB is free. Including non-PyTorch memory, this process has 3.00 GiB "
        "memory in use. Of the allocated memory 3.00 GiB is allocated by PyTorch, and 0 bytes is "
        "reserved by PyTorch but unallocated. "
    )
    assert torch.cuda.memory_stats()["num_ooms"] == 1


def test_a_failed_handler_keeps_its_memory_until_its_frames_are_cleared(
    torch: ModuleType, handlers: ModuleType
) -> None:
    try:
        handlers.allocate({"payload": {"bytes": 6 * GIB, "pieces": 6}})
    except torch.OutOfMemoryError as error:
        kept = error
    gc.collect()
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 4 * GIB, "reserved": 4 * GIB, "free": 0}
    traceback.clear_frames(kept.__traceback__)
    assert figures(torch) == {"allocated": 0, "reserved": 4 * GIB, "free": 0}
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 0, "reserved": 0, "free": 4 * GIB}


@pytest.mark.parametrize("handler", ["chained", "in_frames"])
def test_memory_referenced_by_frames_is_in_use_until_all_frames_are_cleared(
    torch: ModuleType, handlers: ModuleType, handler: str
) -> None:
    try:
        handlers.call({"payload": {"call": handler, "bytes": 1 * GIB, "pieces": 1}})
        handlers.call({"payload": {"call": handler, "bytes": 8 * GIB, "pieces": 8}})
    except RuntimeError as error:
        chain = [error, *filter(None, [error.__cause__])]
    gc.collect()
    torch.cuda.empty_cache()
    assert figures(torch)["allocated"] == 4 * GIB
    for link in chain:
        traceback.clear_frames(link.__traceback__)
    torch.cuda.empty_cache()
    assert figures(torch) == {"allocated": 0, "reserved": 0, "free": 4 * GIB}


def test_cached_memory_is_not_available_to_other_libraries(
    torch: ModuleType, tensor: Callable[[int], Any], handlers: ModuleType
) -> None:
    tensor(4 * GIB)
    beside = {"payload": {"call": "beside", "bytes": 3 * GIB}}
    with pytest.raises(torch.AcceleratorError, match=r"^CUDA error: out of memory$"):
        handlers.call(beside)
    torch.cuda.empty_cache()
    assert handlers.call(beside) == 3 * GIB
    assert figures(torch)["free"] == 4 * GIB


def test_after_a_lost_context_every_call_fails_with_the_real_message(
    torch: ModuleType, handlers: ModuleType
) -> None:
    for call in ("assert_on_device", "allocate"):
        with pytest.raises(RuntimeError) as failed:
            handlers.call({"payload": {"call": call, "bytes": 1}})
        assert failed.type is torch.AcceleratorError
        first, second, *_ = str(failed.value).splitlines()
        assert first == "CUDA error: device-side assert triggered"
        assert second.startswith("Search for `cudaErrorAssert' in https://docs.nvidia.com/")


def test_a_generator_can_fail_after_some_results(handlers: ModuleType) -> None:
    parts = handlers.stream({"payload": {"count": 3, "fails": 1}})
    assert next(parts) == {"part": 0}
    with pytest.raises(ValueError, match="part 1"):
        next(parts)


@pytest.mark.parametrize(
    ("payload", "result"),
    [
        pytest.param({"call": "echo", "x": 1}, {"call": "echo", "x": 1}, id="echo"),
        pytest.param({"call": "fan_out", "count": 2}, [{"part": 0}, {"part": 1}], id="fan out"),
        pytest.param({"call": "fan_out", "count": 0}, [], id="fan out, no result"),
        pytest.param({"call": "slow", "seconds": 0}, {"call": "slow", "seconds": 0}, id="slow"),
        pytest.param(
            {"call": "allocate", "bytes": 2 * GIB},
            {"tensors": 1, "allocated": 2 * GIB},
            id="allocate",
        ),
    ],
)
def test_a_handler_is_called_by_name(
    handlers: ModuleType, payload: dict[str, Any], result: Any
) -> None:
    assert handlers.call({"payload": payload}) == result


def test_a_handler_that_returns_leaves_its_memory_in_the_cache(handlers: ModuleType) -> None:
    handlers.allocate({"payload": {"bytes": 2 * GIB, "pieces": 2}})
    seen = handlers.stats({"payload": {}})
    assert seen["memory"] == {
        "allocated_bytes.all.current": 0,
        "reserved_bytes.all.current": 2 * GIB,
        "allocation.all.allocated": 2,
        "allocation.all.freed": 2,
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }
    assert (seen["initialized"], seen["calls"]) == (True, {})
