"""What the machine offers: cards and their memory, host RAM, cores, disk, installed kernels. Without torch.

    probe()                                 the machine this runs on, by NVML and psutil
    simulate("1x24GB@8.9,ram=64")           one that is described, for trying plans out

A GB here is 2^30 bytes, as cards are sold. Memory counts by what is *free*: other programs take some.
"""

import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import psutil
import pynvml

from ovi_studio.errors import InvalidInputError

GB = 2**30

Interconnect: TypeAlias = Literal["none", "pcie", "nvlink"]
Disk: TypeAlias = Literal["hdd", "ssd", "nvme"]
Kernel: TypeAlias = Literal["flash_attn", "flash_attn_interface", "sageattention", "torchao", "bitsandbytes", "triton"]

DISKS: tuple[Disk, ...] = get_args(Disk)
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# What a simulated machine has unless it says otherwise: the `[cuda]` extra, and the triton that CUDA builds of
# torch bring.
USUAL_KERNELS: frozenset[Kernel] = frozenset({"flash_attn", "torchao", "bitsandbytes", "triton"})
MIN_CAPABILITY = (7, 5)  # derived: what current CUDA builds of torch are compiled for
BF16_CAPABILITY, FP8_CAPABILITY = (8, 0), (8, 9)  # tensor cores for them begin with Ampere and Ada
SIMULATED_RAM_GB, SIMULATED_CORES = 64, 16  # a usual workstation; guessed


@dataclass(frozen=True)
class Card:
    """One GPU, or one MIG slice of one.

    Args:
        name: as its maker calls it.
        uuid: what `CUDA_VISIBLE_DEVICES` understands; empty for a simulated card.
        compute_capability: major and minor, such as (8, 9).
        total_bytes: of its memory.
        free_bytes: of its memory, now.
        cuda_cores: 0 where not known (MIG slices, simulated cards): then it is as fast as its class.
        clock_mhz: highest clock of its multiprocessors; 0 where not known.
    """

    name: str
    uuid: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    cuda_cores: int = 0
    clock_mhz: int = 0

    @property
    def capability(self) -> str:
        """The compute capability as it is written: `8.9`."""
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"


@dataclass(frozen=True)
class Hardware:
    """A machine.

    Args:
        cards: in PCI bus order; set `CUDA_DEVICE_ORDER=PCI_BUS_ID` (or use UUIDs) to count as it does.
        interconnect: between the first two cards.
        ram_bytes: of the host, or of the container's share of it.
        free_ram_bytes: what programs can still take, file cache that can be dropped included.
        cores: physical cores this process may run on.
        disk: class of the disk that holds the weights.
        kernels: optional packages that can be imported.
        torch_cuda: whether the installed torch can use a card.
        notes: in words, what could not be found out, or why there is no card.
    """

    cards: tuple[Card, ...]
    ram_bytes: int
    free_ram_bytes: int
    cores: int
    disk: Disk
    interconnect: Interconnect = "none"
    kernels: frozenset[Kernel] = frozenset()
    torch_cuda: bool = True
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """The machine in one line."""
        cards = [
            f"{c.name} (compute {c.capability}, {_gb(c.free_bytes)} of {_gb(c.total_bytes)} free)" for c in self.cards
        ]
        ram = f"{_gb(self.free_ram_bytes)} of {_gb(self.ram_bytes)} RAM free, {self.cores} cores, {self.disk}"
        return f"{' and '.join(cards) or 'no usable card'}; {ram}"


def _gb(count: int) -> str:
    return f"{count / GB:.1f} GB"


# --- Simulation -------------------------------------------------------------------------------------------


def simulate(text: str) -> Hardware:
    """A machine from a description: cards (or `cpu`), then any of `name=value`, separated by commas.

        1x24GB@8.9,ram=64           one card of 24 GB and compute capability 8.9, 64 GB of RAM
        2x80GB@9.0,ram=512,free=70,disk=nvme,link=nvlink
        cpu,ram=16,cores=4

    `free` is GB free on each card, `ramfree` GB of free RAM (both: all, unless given); `disk` is hdd, ssd or nvme;
    `link` is pcie or nvlink; `kernels` is all, none, or names joined by `+`.

    Raises:
        InvalidInputError: it cannot be read, or makes no sense.
    """
    cards_text, *rest = (part.strip().lower() for part in text.split(","))
    settings = _read_settings(rest, text)
    ram = settings.get("ram", SIMULATED_RAM_GB * GB)
    free_ram = settings.get("ramfree", ram)
    if free_ram > ram:
        raise _bad_simulation(text, "more RAM is free than there is")
    cards = _read_cards(cards_text, settings.get("free"), text)
    link: Interconnect = settings.get("link", "pcie") if len(cards) > 1 else "none"
    return Hardware(
        cards,
        ram,
        free_ram,
        settings.get("cores", SIMULATED_CORES),
        settings.get("disk", "nvme"),
        link,
        settings.get("kernels", USUAL_KERNELS) if cards else frozenset(),
        torch_cuda=bool(cards),
    )


def _read_cards(cards: str, free: int | None, text: str) -> tuple[Card, ...]:
    if cards == "cpu":
        if free is not None:
            raise _bad_simulation(text, "free= is the memory of cards, and there is none")
        return ()
    match = re.fullmatch(r"(?:(\d{1,2})x)?(\d{1,4}(?:\.\d{1,3})?)gb@(\d{1,2})\.(\d)", cards)
    if not match:
        raise _bad_simulation(text, f"{cards[:40]!r} is neither cpu nor cards such as 1x24GB@8.9")
    count, total = int(match[1] or 1), round(float(match[2]) * GB)
    if not count or not total:
        raise _bad_simulation(text, "there are no cards of no memory; a machine without cards is cpu")
    if free is not None and free > total:
        raise _bad_simulation(text, "more card memory is free than there is")
    name = f"simulated {match[2]} GB card"
    card = Card(name, "", (int(match[3]), int(match[4])), total, total if free is None else free)
    return (card,) * count


def _read_settings(parts: Iterable[str], text: str) -> dict[str, Any]:
    readers: Mapping[str, Callable[[str], Any]] = {
        "ram": _read_gb,
        "ramfree": _read_gb,
        "free": _read_gb,
        "cores": _read_cores,
        "disk": lambda value: _one_of(value, DISKS),
        "link": lambda value: _one_of(value, ("pcie", "nvlink")),
        "kernels": _read_kernels,
    }
    settings: dict[str, Any] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name not in readers:
            raise _bad_simulation(text, f"{part[:40]!r} is none of {', '.join(f'{known}=' for known in readers)}")
        if name in settings:
            raise _bad_simulation(text, f"{name} is given twice")
        try:
            settings[name] = readers[name](value)
        except ValueError as error:
            raise _bad_simulation(text, f"{name} cannot be {value[:40]!r}") from error
    return settings


def _read_gb(value: str) -> int:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?(gb)?", value):
        raise ValueError(value)
    return round(float(value.removesuffix("gb")) * GB)


def _read_cores(value: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", value):
        raise ValueError(value)
    return int(value)


def _one_of(value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(value)
    return value


def _read_kernels(value: str) -> frozenset[str]:
    if value in ("all", "none"):
        return frozenset(KERNELS if value == "all" else ())
    return frozenset(_one_of(name, KERNELS) for name in value.split("+"))


def _bad_simulation(text: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The machine {text[:80]!r} cannot be simulated: {why}.",
        "Describe one as 1x24GB@8.9,ram=64 or cpu,ram=16; also free=, ramfree=, disk=, cores=, link=, kernels=.",
    )


# --- Probing ----------------------------------------------------------------------------------------------


def probe(
    weights: Path = Path(),
    *,
    nvml: Any = pynvml,
    environment: Mapping[str, str] = os.environ,
    system: Path = Path("/"),
) -> Hardware:
    """This machine, as it is now. Takes milliseconds, imports no torch, and leaves nothing open on the cards.

    Args:
        weights: a path on the disk that holds the weights (default: the working directory).
        nvml: the NVML binding; tests give their own.
        environment: where `CUDA_VISIBLE_DEVICES` is looked up, which NVML itself ignores.
        system: root of the file system under which `sys` and `proc` are read.
    """
    torch_cuda = _torch_has_cuda()
    cards, interconnect, notes = _probe_cards(nvml, environment.get("CUDA_VISIBLE_DEVICES"))
    if cards and not torch_cuda:
        notes = (*notes, "The installed torch is a build without CUDA: the card cannot be used.")
    ram, free_ram = _probe_ram(system)
    return Hardware(
        cards,
        ram,
        free_ram,
        _probe_cores(),
        _probe_disk(weights, system),
        interconnect,
        frozenset(name for name in KERNELS if importlib.util.find_spec(name) is not None),
        torch_cuda,
        notes,
    )


def private_bytes(pid: int | None = None) -> int:
    """What a process, by default this one, has of host memory for itself: mapped files are the system's to drop.

    On macOS, which does not tell them apart at once, they are counted.

    Raises:
        psutil.Error: there is no such process.
    """
    info = psutil.Process(pid).memory_info()
    if sys.platform == "linux":
        return int(info.rss - info.shared)
    return int(getattr(info, "private", info.rss))


@dataclass(frozen=True)
class Held:
    """What a process has of the machine's memory already, and a plan for it counts again: it is as good as free.

    Args:
        host_bytes: in host memory.
        on_cards: by a card's uuid or its name for torch, CUDA's own share included.
    """

    host_bytes: int = 0
    on_cards: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def freed(self, hardware: Hardware) -> Hardware:
        """The machine with what is held counted as free."""
        cards = tuple(
            dataclasses.replace(card, free_bytes=min(card.total_bytes, card.free_bytes + self._on(index, card)))
            for index, card in enumerate(hardware.cards)
        )
        free_ram = min(hardware.ram_bytes, hardware.free_ram_bytes + self.host_bytes)
        return dataclasses.replace(hardware, cards=cards, free_ram_bytes=free_ram)

    def _on(self, index: int, card: Card) -> int:
        return self.on_cards.get(card.uuid, self.on_cards.get(f"cuda:{index}", 0))


def memory_of(pid: int, *, nvml: Any = pynvml) -> Held:
    """What a process holds, and those that it started; nothing where the system does not tell.

    Args:
        pid: of the process.
        nvml: the NVML binding; tests give their own.
    """
    try:
        pids = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        host = sum(private_bytes(each) for each in pids)
    except psutil.Error:  # one has just ended
        return Held()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Held(host)
    on_cards: dict[str, int] = {}
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for part in _mig_slices(nvml, handle) or [handle]:
                own = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(part) if p.pid in pids]
                on_cards[_text(nvml.nvmlDeviceGetUUID(part))] = sum(process.usedGpuMemory or 0 for process in own)
    except nvml.NVMLError:
        return Held(host)
    finally:
        nvml.nvmlShutdown()
    return Held(host, on_cards)


def _torch_has_cuda() -> bool:
    """Whether torch's libraries on disk include the CUDA one; its version tells it only for some builds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    libraries = Path(spec.origin).parent / "lib"
    return any((libraries / name).exists() for name in ("libtorch_cuda.so", "torch_cuda.dll"))


def _probe_cards(nvml: Any, visible: str | None) -> tuple[tuple[Card, ...], Interconnect, tuple[str, ...]]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:  # no driver, no library, no permission: all mean that no card can be used
        return (), "none", (f"There is no NVIDIA card that can be used: {error}.",)
    try:
        return _read_nvml(nvml, visible)
    except nvml.NVMLError as error:
        return (), "none", (f"The NVIDIA driver does not answer: {error}.",)
    finally:
        nvml.nvmlShutdown()


def _read_nvml(nvml: Any, visible: str | None) -> tuple[tuple[Card, ...], Interconnect, tuple[str, ...]]:
    cards: list[tuple[Any, Card]] = []
    notes: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(nvml.nvmlDeviceGetName(handle))
        uuids = {str(index), _text(nvml.nvmlDeviceGetUUID(handle))}
        for part in _mig_slices(nvml, handle) or [handle]:
            try:
                card = _read_card(nvml, handle, part, name)
            except nvml.NVMLError as error:
                notes.append(f"{name} is left out, its memory cannot be read: {error}.")
                continue
            if _is_visible(visible, uuids | {card.uuid}):
                cards.append((handle, card))
            else:
                notes.append(f"{name} is left out, CUDA_VISIBLE_DEVICES hides it.")
    if visible is not None:
        cards.sort(key=lambda pair: _visible_rank(visible, pair[1], pair[0], nvml))
    if not cards and not notes:
        notes.append("The driver lists no NVIDIA card.")
    return tuple(card for _, card in cards), _interconnect(nvml, [handle for handle, _ in cards]), tuple(notes)


def _read_card(nvml: Any, handle: Any, part: Any, name: str) -> Card:
    """`part` is the card itself or a MIG slice of it: memory is the slice's own, the rest the card's."""
    memory = nvml.nvmlDeviceGetMemoryInfo(part)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    whole = part is handle
    cores = _optional(nvml, lambda: nvml.nvmlDeviceGetNumGpuCores(handle)) if whole else 0
    clock = _optional(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)) if whole else 0
    title = name if whole else f"{name} (MIG slice)"
    uuid = _text(nvml.nvmlDeviceGetUUID(part))
    return Card(title, uuid, (major, minor), memory.total, memory.free, cores, clock)


def _mig_slices(nvml: Any, handle: Any) -> list[Any]:
    """The MIG slices of a card; none where it is not sliced."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        if current != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # cards without MIG say "not supported"
        return []
    places = (_mig_slice(nvml, handle, index) for index in range(count))
    return [place for place in places if place is not None]


def _mig_slice(nvml: Any, handle: Any, index: int) -> Any:
    """The slice at a place; None where the place is not used."""
    try:
        return nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
    except nvml.NVMLError:
        return None


def _optional(nvml: Any, read: Callable[[], int]) -> int:
    """A number that older cards and drivers do not tell: then 0."""
    try:
        return read()
    except nvml.NVMLError:
        return 0


def _is_visible(visible: str | None, names: set[str]) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` shows a card with these names (index, UUIDs; UUIDs may be abbreviated)."""
    if visible is None:
        return True
    listed = [entry.strip() for entry in visible.split(",")]
    return any(entry and any(_names(entry, name) for name in names) for entry in listed)


def _visible_rank(visible: str, card: Card, handle: Any, nvml: Any) -> int:
    """Place of a visible card in `CUDA_VISIBLE_DEVICES`: CUDA counts them in that order."""
    names = {str(nvml.nvmlDeviceGetIndex(handle)), _text(nvml.nvmlDeviceGetUUID(handle)), card.uuid}
    listed = [entry.strip() for entry in visible.split(",")]
    return next(rank for rank, entry in enumerate(listed) if entry and any(_names(entry, name) for name in names))


def _names(entry: str, name: str) -> bool:
    return entry == name if entry.isdigit() or name.isdigit() else name.startswith(entry)


def _interconnect(nvml: Any, handles: list[Any]) -> Interconnect:
    if len(handles) < 2:
        return "none"
    try:
        status = nvml.nvmlDeviceGetP2PStatus(handles[0], handles[1], nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError:  # two slices of one card, or an old driver
        return "pcie"
    return "nvlink" if status == nvml.NVML_P2P_STATUS_OK else "pcie"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings give bytes


def _probe_ram(system: Path) -> tuple[int, int]:
    """Total and free bytes: the host's, or the container's share where that is less."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for folder in _cgroup_folders(system):
        limit = _read_number(folder / "memory.max") or _read_number(folder / "memory.limit_in_bytes")
        used = _read_number(folder / "memory.current") or _read_number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            total, free = min(total, limit), min(free, max(0, limit - used + _inactive_file(folder)))
    return total, free


def _cgroup_folders(system: Path) -> list[Path]:
    """Folders of this process's memory cgroup and all above it: each limit holds."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root = system / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
        else:
            continue
        inner = root / path.lstrip("/")
        # Inside a container the path may be the host's; the container's own limit is then at the root.
        folders += [inner, *(folder for folder in inner.parents if folder.is_relative_to(root))]
    return folders


def _read_number(path: Path) -> int | None:
    """The number in a file; None where there is no file or no limit (`max`)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file(folder: Path) -> int:
    """File cache that counts as used but is dropped when memory is wanted."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)


def _probe_cores() -> int:
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return min(cores, allowed)


def _probe_disk(path: Path, system: Path) -> Disk:
    """The class of the disk under `path`; `ssd` where it cannot be told (network and overlay file systems)."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        device = path.stat().st_dev
        block = (system / f"sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve(strict=True)
    except (OSError, AttributeError):  # no such device, or not Linux (no os.major)
        return "ssd"
    if block.name.startswith("nvme"):
        return "nvme"
    if block.name.startswith(("vd", "xvd")):  # virtual disks call themselves rotating, whatever is below
        return "ssd"
    rotational = _read_number(block / "queue/rotational")
    if rotational is None:  # a partition: its disk is the folder above
        rotational = _read_number(block.parent / "queue/rotational")
    return "hdd" if rotational == 1 else "ssd"
