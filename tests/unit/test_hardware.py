import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from ovi_studio.errors import InvalidInputError
from ovi_studio.runtime.hardware import GB, KERNELS, memory_of, private_bytes, probe, simulate

# --- Simulation -------------------------------------------------------------------------------------------


def test_a_described_machine():
    machine = simulate("1x24GB@8.9,ram=64")
    (card,) = machine.cards
    assert (card.total_bytes, card.free_bytes, card.compute_capability) == (24 * GB, 24 * GB, (8, 9))
    assert (machine.ram_bytes, machine.free_ram_bytes, machine.interconnect) == (64 * GB, 64 * GB, "none")
    assert "torchao" in machine.kernels


def test_every_setting():
    machine = simulate(
        "2x80GB@9.0, ram=512, ramfree=100, free=70.5, disk=hdd, cores=64, link=nvlink, kernels=torchao+triton"
    )
    assert [card.free_bytes for card in machine.cards] == [int(70.5 * GB)] * 2
    assert (machine.ram_bytes, machine.free_ram_bytes) == (512 * GB, 100 * GB)
    assert (machine.disk, machine.cores, machine.interconnect) == ("hdd", 64, "nvlink")
    assert machine.kernels == {"torchao", "triton"}
    assert simulate("24GB@8.9,kernels=all").kernels == set(KERNELS)
    assert simulate("24GB@8.9,kernels=none").kernels == set()
    assert "24.0 GB" in simulate("24GB@8.9").describe()


def test_a_machine_without_cards():
    machine = simulate("cpu,ram=16,cores=4")
    assert (machine.cards, machine.cores, machine.torch_cuda) == ((), 4, False)
    assert "no usable card" in machine.describe()


@pytest.mark.parametrize(
    "text",
    [
        "", "24GB", "1x24@8.9", "0x24GB@8.9", "1x0GB@8.9", "1x24GB@8.9,ram", "1x24GB@8.9,ram=", "1x24GB@8.9,ram=-1",
        "1x24GB@8.9,ram=64,ram=32",
        "1x24GB@8.9,colour=red", "1x24GB@8.9,free=25", "1x24GB@8.9,ram=8,ramfree=9",
        "1x24GB@8.9,disk=tape", "1x24GB@8.9,kernels=magic", "1x24GB@8.9,cores=0", "cpu,free=3", "gpu",
        "1x24GB@8.9;ram=4",
        "9" * 500, "1x24GB@8.9,ram=" + "9" * 50,
    ],
)  # fmt: skip
def test_nonsense_is_refused(text):
    with pytest.raises(InvalidInputError) as refused:
        simulate(text)
    assert "1x24GB@8.9,ram=64" in refused.value.remedy
    assert len(str(refused.value)) < 500


# --- Probing ----------------------------------------------------------------------------------------------


class FakeNvml:
    """A driver with cards; each is a dict of what it answers. What is missing is "not supported"."""

    NVML_CLOCK_SM = 1
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_P2P_CAPS_INDEX_NVLINK = 2
    NVML_P2P_STATUS_OK = 0

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    def __init__(self, *cards, missing_library=False, linked=False):
        self.cards = cards
        self.missing_library = missing_library
        self.linked = linked
        self.open = 0

    def _answer(self, card, name):
        if name not in card:
            raise self.NVMLError("Not Supported")
        return card[name]

    def nvmlInit(self):
        if self.missing_library:
            raise self.NVMLError_LibraryNotFound("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.cards[index]

    def nvmlDeviceGetIndex(self, card):
        return next(index for index, other in enumerate(self.cards) if other is card)

    def nvmlDeviceGetName(self, card):
        return card["name"]

    def nvmlDeviceGetUUID(self, card):
        return card["uuid"]

    def nvmlDeviceGetMemoryInfo(self, card):
        total, free = self._answer(card, "memory")
        return SimpleNamespace(total=total * GB, free=free * GB, used=(total - free) * GB)

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return self._answer(card, "capability")

    def nvmlDeviceGetNumGpuCores(self, card):
        return self._answer(card, "cores")

    def nvmlDeviceGetMaxClockInfo(self, card, clock):
        assert clock == self.NVML_CLOCK_SM
        return self._answer(card, "clock")

    def nvmlDeviceGetMigMode(self, card):
        return (1, 1) if self._answer(card, "slices") else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, index):
        if index >= len(card["slices"]):
            raise self.NVMLError("Not Found")
        return card["slices"][index]

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        running = self._answer(card, "processes").items()
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in running]

    def nvmlDeviceGetP2PStatus(self, first, second, kind):
        assert kind == self.NVML_P2P_CAPS_INDEX_NVLINK
        return self.NVML_P2P_STATUS_OK if self.linked else 5


def rtx(index=0, **changes):
    answers = {
        "name": "RTX 4090", "uuid": f"GPU-{index}abc", "memory": (24, 22), "capability": (8, 9), "cores": 16384,
        "clock": 2520,
    }  # fmt: skip
    return {**answers, **changes}


def probe_cards(nvml, **environment):
    machine = probe(nvml=nvml, environment=environment)
    assert nvml.open == 0
    return machine


def test_a_card_and_what_others_have_taken_of_it():
    machine = probe_cards(FakeNvml(rtx(slices=[])))
    (card,) = machine.cards
    assert (card.name, card.capability, card.total_bytes, card.free_bytes) == ("RTX 4090", "8.9", 24 * GB, 22 * GB)
    assert (card.cuda_cores, card.clock_mhz, card.uuid) == (16384, 2520, "GPU-0abc")


def test_no_driver_is_a_machine_without_cards():
    machine = probe_cards(FakeNvml(missing_library=True))
    assert machine.cards == ()
    assert "Library Not Found" in machine.notes[0]


def test_old_drivers_give_bytes_and_know_less():
    card = rtx(name=b"Tesla T4")
    del card["cores"], card["clock"]
    (found,) = probe_cards(FakeNvml(card)).cards
    assert (found.name, found.cuda_cores, found.clock_mhz) == ("Tesla T4", 0, 0)


@pytest.mark.parametrize(("linked", "link"), [(True, "nvlink"), (False, "pcie")])
def test_several_cards_and_their_link(linked, link):
    machine = probe_cards(FakeNvml(rtx(0), rtx(1), linked=linked))
    assert len(machine.cards) == 2
    assert machine.interconnect == link


def test_a_card_that_does_not_answer_is_left_out():
    broken = rtx(1)
    del broken["memory"]
    machine = probe_cards(FakeNvml(rtx(0), broken))
    assert [card.uuid for card in machine.cards] == ["GPU-0abc"]
    assert any("left out" in note for note in machine.notes)


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [("1", ["GPU-1abc"]), ("1,0", ["GPU-1abc", "GPU-0abc"]), ("GPU-0a", ["GPU-0abc"]), ("", []), ("-1", [])],
)
def test_hidden_cards_are_hidden(visible, uuids):
    machine = probe_cards(FakeNvml(rtx(0), rtx(1)), CUDA_VISIBLE_DEVICES=visible)
    assert [card.uuid for card in machine.cards] == uuids


def test_mig_slices_are_cards_of_their_own():
    slices = [{"uuid": "MIG-1", "memory": (40, 39)}, {"uuid": "MIG-2", "memory": (20, 20)}]
    machine = probe_cards(FakeNvml(rtx(name="H100", capability=(9, 0), slices=slices)))
    assert [(card.uuid, card.total_bytes // GB, card.capability) for card in machine.cards] == [
        ("MIG-1", 40, "9.0"),
        ("MIG-2", 20, "9.0"),
    ]
    assert all("MIG" in card.name and card.cuda_cores == 0 for card in machine.cards)


def test_the_host_is_measured():
    machine = probe_cards(FakeNvml())
    assert 0 < machine.free_ram_bytes <= machine.ram_bytes
    assert machine.cores >= 1
    assert machine.disk in ("hdd", "ssd", "nvme")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_container_has_only_its_share(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/box/inner\n")
    box = tmp_path / "sys/fs/cgroup/box"
    write(box / "inner/memory.max", "max\n")
    write(box / "inner/memory.current", "1000\n")
    write(box / "memory.max", "100000000\n")
    write(box / "memory.current", "60000000\n")
    write(box / "memory.stat", "anon 50000000\ninactive_file 10000000\n")
    machine = probe(nvml=FakeNvml(), environment={}, system=tmp_path)
    assert (machine.ram_bytes, machine.free_ram_bytes) == (100_000_000, 50_000_000)


def test_an_old_style_container_too(tmp_path):
    write(tmp_path / "proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes", "200000000\n")
    write(tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes", "150000000\n")
    machine = probe(nvml=FakeNvml(), environment={}, system=tmp_path)
    assert (machine.ram_bytes, machine.free_ram_bytes) == (200_000_000, 50_000_000)


@pytest.mark.parametrize(
    ("name", "rotational", "disk"),
    [("nvme0n1", "0", "nvme"), ("sda", "1", "hdd"), ("sdb", "0", "ssd"), ("vda", "1", "ssd")],
)
def test_the_disk_is_told_by_its_name_and_rotation(tmp_path, name, rotational, disk):
    device = tmp_path.stat().st_dev
    block = tmp_path / "sys/devices" / name
    write(block / "queue/rotational", rotational)
    partition = block / f"{name}1"
    partition.mkdir()
    link = tmp_path / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(partition)
    machine = probe(tmp_path / "not/yet/there", nvml=FakeNvml(), environment={}, system=tmp_path)
    assert machine.disk == disk


def test_probing_and_planning_import_no_torch():
    code = (
        "import sys; from ovi_studio.runtime import hardware, plan; hardware.probe();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'torchao', 'triton')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_process_holds_is_told_card_by_card():
    nvml = FakeNvml(rtx(0, processes={os.getpid(): 5 * GB, 1: 2 * GB}), rtx(1, processes={}))
    held = memory_of(os.getpid(), nvml=nvml)
    assert list(held.on_cards.values()) == [5 * GB, 0]
    assert 0 < held.host_bytes <= psutil.Process().memory_info().rss
    assert memory_of(os.getpid(), nvml=FakeNvml(missing_library=True)).on_cards == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not tell mapped files apart")
def test_mapped_files_are_not_a_processs_own(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(50_000_000))
    before = private_bytes()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert private_bytes() - before < 10_000_000
    own = b"1" * 50_000_000
    assert private_bytes() - before > 40_000_000
    del own
