"""Gives a PyTorch without CUDA two CUDA devices that are memory of the host, and `dendnorm` its CUDA ops on them: see
CMakeLists.txt. What a test or a script asks of torch.cuda is answered as a device would."""

from __future__ import annotations

import ctypes
import os
import types
from typing import Any

PATH = os.environ.get("DENDNORM_ON_HOST")
# Before PyTorch, which looks only once whether somebody registered CUDA's hooks; `import dendnorm` finds it loaded.
LIBRARY = ctypes.CDLL(PATH) if PATH else None

import torch  # noqa: E402

DEVICES = 2


class Graph:
    """torch.cuda.CUDAGraph: a capture keeps what the stream is given, a replay gives it to the stream again."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._graph: int | None = None

    def capture_begin(self, *pool: Any, **options: Any) -> None:
        LIBRARY.dendnorm_on_host_begin_capture(LIBRARY.dendnorm_on_host_device())

    def capture_end(self) -> None:
        self._graph = LIBRARY.dendnorm_on_host_end_capture()

    def replay(self) -> None:
        LIBRARY.dendnorm_on_host_replay(ctypes.c_void_p(self._graph), LIBRARY.dendnorm_on_host_device())

    def __del__(self) -> None:
        if self._graph is not None:
            LIBRARY.dendnorm_on_host_destroy(ctypes.c_void_p(self._graph))


def install(library: ctypes.CDLL) -> None:
    """Let torch.cuda tell of the library's devices."""
    if torch.version.cuda is not None:
        raise RuntimeError(f"needs a PyTorch without CUDA, got {torch.__version__}")
    for name in ("launches", "allocations", "questions"):
        getattr(library, f"dendnorm_on_host_{name}").restype = ctypes.c_uint64
    library.dendnorm_on_host_end_capture.restype = ctypes.c_void_p
    cuda = torch.cuda

    def index_of(device: Any = None) -> int:
        if device is None:
            return library.dendnorm_on_host_device()
        if isinstance(device, int):
            return device
        found = torch.device(device).index
        return library.dendnorm_on_host_device() if found is None else found

    def exchange(index: int) -> int:
        before = library.dendnorm_on_host_device()
        if index >= 0:
            library.dendnorm_on_host_set_device(index)
        return before

    def set_stream(stream: torch.Stream) -> None:
        library.dendnorm_on_host_set_stream(stream.device_index, stream.stream_id)

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **options: Any) -> Stream:
            if options:
                return super().__new__(cls, **options)
            return super().__new__(cls, device=torch.device("cuda", index_of(device)), priority=priority)

    def event(enable_timing: bool = False, **options: Any) -> torch.Event:
        return torch.Event("cuda", enable_timing=enable_timing)

    def current_stream(device: Any = None) -> torch.Stream:
        return torch.accelerator.current_stream(torch.device("cuda", index_of(device)))

    class stream_context:
        def __init__(self, stream: torch.Stream | None) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            if self.stream is not None:
                self.before = current_stream(), index_of()
                exchange(self.stream.device_index)
                self.there = current_stream()
                set_stream(self.stream)

        def __exit__(self, *_: Any) -> None:
            if self.stream is not None:
                set_stream(self.there)
                exchange(self.before[1])

    mode = ["default"]

    def set_sync_debug_mode(wanted: Any) -> None:
        mode[0] = {0: "default", 1: "warn", 2: "error"}.get(wanted, wanted)
        library.dendnorm_on_host_forbid_waiting(int(mode[0] == "error"))

    properties = types.SimpleNamespace(
        name="the processor in a GPU's place", major=9, minor=0, total_memory=1 << 30, multi_processor_count=132,
        L2_cache_size=50 << 20,
    )  # fmt: skip
    answers = {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "device_count": lambda: DEVICES,
        "current_device": index_of,
        "set_device": lambda device: exchange(index_of(device)),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "synchronize": lambda device=None: library.dendnorm_on_host_finish(index_of(device)),
        "Stream": Stream,
        "Event": event,
        "current_stream": current_stream,
        "set_stream": set_stream,
        "stream": stream_context,
        "CUDAGraph": Graph,
        "is_current_stream_capturing": lambda: bool(library.dendnorm_on_host_capturing()),
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (9, 0),
        "get_sync_debug_mode": lambda: mode[0],
        "set_sync_debug_mode": set_sync_debug_mode,
        "is_bf16_supported": lambda including_emulation=True: True,
        "manual_seed_all": lambda seed: None,
        "get_rng_state_all": lambda: [],
        "empty_cache": lambda: None,
        "_sleep": lambda cycles: None,
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    torch._C._host_emptyCache = lambda: None


if LIBRARY is not None:
    install(LIBRARY)
