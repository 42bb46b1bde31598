"""A second device, "remote", whose tensors live in CPU memory and do not mix with the CPU's.

What a GPU refuses it refuses: operations on tensors of two devices (but for 0-dim CPU tensors that are only read), a
generator of another device. What makes the host wait for a GPU it writes down: see ``syncs``. Its numbers are the CPU's
bit for bit. Built on the PrivateUse1 backend; set up once in a process and never undone.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors import accelerator_connector as connector
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "remote"
CPU = torch.device("cpu")

waits: Counter[str] | None = None  # where the host waited for the device, while somebody listens
_library: list[torch.library.Library] = []  # an object that dies takes its registrations along
_generators: set[int] = set()

# The host has to know what these give, or how large it is.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
# Of inference tensors whole functions come here; it is parts of these that copy or wait.
PARTS = {aten.to, aten.item, aten.is_nonzero, aten.argwhere, aten.type_as}
# torch makes these empty and then gives them their size, which a wrapper cannot follow.
RESIZED = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace")
# As CUDA's autocast does it, of what is used here (torch/csrc and ATen: autocast_mode.h).
LOW = "linear matmul mm bmm addmm baddbmm conv2d scaled_dot_product_attention".split()
FULL = "layer_norm cross_entropy_loss mse_loss kl_div log_softmax.int softmax.int sum norm.Scalar".split()


class DevicesMixed(RuntimeError):
    """What torch says of tensors on two devices."""


class RemoteTensor(torch.Tensor):
    """A tensor on the device; ``local`` holds its numbers."""

    local: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, local: torch.Tensor) -> "RemoteTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, local.size(), strides=local.stride(), storage_offset=local.storage_offset(), dtype=local.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        tensor.local = local
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"remote {self.local!r}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "RemoteTensor":
        if id(self) not in memo:
            twin = RemoteTensor(self.local.clone()).requires_grad_(self.requires_grad)
            for name in vars(self).keys() - {"local"}:
                setattr(twin, name, getattr(self, name))  # that it is a parameter
            memo[id(self)] = twin
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.local.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket in PARTS:
            return func.decompose(*args, **kwargs)
        if func is aten._has_compatible_shallow_copy_type.default:
            return False
        if func is aten.copy_.default:
            return _copy(*args, **kwargs)
        if func is aten._to_copy.default:
            to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
            if to_host:
                _wait(func)
                return func(args[0].local, **kwargs)
        _refuse_mixed(func, args, kwargs)
        if func in WAITING or (func is aten.index.Tensor and any(_is_mask(index) for index in args[1])):
            _wait(func)
        return _run(func, args, kwargs)


class RemoteGenerator(torch._C.Generator):
    """``torch.Generator``, of the device too."""

    def __new__(cls, device: torch.device | str = "cpu") -> "RemoteGenerator":
        of_device = torch.device(device).type == NAME
        generator = super().__new__(cls, CPU if of_device else device)
        generator.where = torch.device(NAME, 0) if of_device else torch.device(device)
        if of_device:
            _generators.add(generator._cdata)
        return generator

    def __del__(self) -> None:
        _generators.discard(self._cdata)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where


class Remote(Accelerator):
    """The device for Lightning."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


class _Module(_DummyBackendModule):
    """``torch.remote``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)


def set_up() -> None:
    """Make the device known to torch, and to Lightning as the best one there is."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.Generator = RemoteGenerator  # type: ignore[misc]
    torch.tensor, torch.as_tensor = _by_way_of_the_host(torch.tensor), _by_way_of_the_host(torch.as_tensor)
    torch.backends.cuda.enable_flash_sdp(False)  # for both devices, the CPU's too, attention by its formula
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper cannot follow ``.data = ...``
    every, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_create, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, low in ((LOW, True), (FULL, False)):
        for name in names:
            ours.impl(name, _cast(_overload(name), low), "AutocastPrivateUse1")
    for name in RESIZED:
        ours.impl(name, partial(_create, _overload(name)), "PrivateUse1")
    _library.extend((every, ours))
    AcceleratorRegistry.register(NAME, Remote, override=True)
    chosen_elsewhere = connector._AcceleratorConnector._choose_strategy

    def choose(self: Any) -> Any:
        here = self._accelerator_flag == NAME
        return SingleDeviceStrategy(torch.device(NAME, 0)) if here else chosen_elsewhere(self)

    def mixed(precision: Any, device: str) -> MixedPrecision:
        return MixedPrecision(precision, NAME if device == "cuda" else device)

    connector._AcceleratorConnector._choose_strategy = choose
    connector._select_auto_accelerator = lambda: NAME
    connector.MixedPrecision = mixed


def _by_way_of_the_host(make: Any) -> Any:
    """Of numbers that the host has: made there and copied, as to a GPU. (torch's own way avoids __torch_dispatch__.)"""

    def made(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, dtype=dtype, device=device, **options)
        return make(data, dtype=dtype, **options).to(device)

    return made


@contextmanager
def syncs() -> Iterator[Counter[str]]:
    """Counts, by what and where, the times that the host waits for the device."""
    global waits
    waits = Counter()
    try:
        yield waits
    finally:
        waits = None


def _wait(func: Any) -> None:
    if waits is None:
        return
    frames: list[str] = []
    frame: Any = sys._getframe(1)
    while frame is not None and len(frames) < 6:
        path = frame.f_code.co_filename
        if "/robustft/" in path or "/lightning/" in path:
            frames.append(f"{Path(path).name}:{frame.f_lineno}")
        frame = frame.f_back
    waits[f"{func} at {' < '.join(frames)}"] += 1


def _create(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations without a tensor that has numbers: new tensors."""
    _refuse_mixed(func, args, kwargs)
    return _run(func, args, kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """On the numbers themselves; what is changed in place stays the tensor that it is."""
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": CPU}
    kwargs.pop("pin_memory", None)
    owners = {id(t.local): t for t in _leaves((args, kwargs)) if isinstance(t, RemoteTensor)}
    args, kwargs = _mapped((args, kwargs), RemoteTensor, lambda t: t.local)
    found = func(*args, **kwargs)
    assert all(t.shape == t.local.shape for t in owners.values()), f"{func} changes the size of a tensor"
    # A view is a tensor of inference_mode only if what it shows is one.
    inference = all(t.is_inference() for t in owners.values()) if func.is_view else torch.is_inference_mode_enabled()
    with torch.inference_mode(inference):
        return _mapped(found, torch.Tensor, lambda t: owners[id(t)] if id(t) in owners else RemoteTensor(t))


def _copy(into: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    here, there = (isinstance(t, RemoteTensor) for t in (into, source))
    if here != there and not (here and non_blocking):  # a copy from pinned memory goes on by itself
        _wait(aten.copy_.default)
    (into.local if here else into).copy_(source.local if there else source)
    return into


def _refuse_mixed(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    changed = [
        t
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for t in _leaves(args[place] if place < len(args) else kwargs.get(argument.name))
    ]
    for value in _leaves((args, kwargs)):
        if isinstance(value, torch.Tensor) and not isinstance(value, RemoteTensor):
            if value.dim() > 0 or any(value is t for t in changed):
                raise DevicesMixed(
                    f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
                    f"({func}, a {value.dtype} of shape {list(value.shape)} is on the cpu)"
                )
        elif isinstance(value, torch._C.Generator) and value._cdata not in _generators:
            raise DevicesMixed(f"Expected a '{NAME}' device type for generator but found 'cpu' ({func})")


def _leaves(value: Any) -> Iterator[Any]:
    """What is in lists, tuples and dictionaries."""
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, kind, function) for part in value)
    if isinstance(value, dict):
        return {name: _mapped(part, kind, function) for name, part in value.items()}
    return function(value) if isinstance(value, kind) else value


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _cast(func: Any, low: bool) -> Any:
    """An operation under autocast: in the low precision, or in float32."""

    def cast(value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point() or value.dtype == torch.float64:
            return value
        return value.to(torch.get_autocast_dtype(NAME) if low else torch.float32)

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            args, kwargs = _mapped((args, kwargs), torch.Tensor, cast)
            return func(*args, **kwargs)

    return under_autocast
