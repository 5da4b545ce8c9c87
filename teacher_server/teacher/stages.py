"""Where the time of a run went, stage by stage, so that a user sees what the bottleneck is."""

from dataclasses import dataclass, fields

WAITS = ("wait_for_blocks", "wait_for_images", "wait_for_device", "wait_for_write")
MUCH = 0.1  # share of the time that is worth doing something about


@dataclass(kw_only=True)
class StageSeconds:
    """Seconds, added up.

    wait_for_…: of the loop that passes things on. to_device, forward, encode, to_host: of the
    device, a GPU's by its own clock, a CPU's as the mean over its threads. read, render: of all
    decoding processes together. write: of the writing thread.
    """

    wall: float = 0.0
    read: float = 0.0
    render: float = 0.0
    to_device: float = 0.0
    forward: float = 0.0
    encode: float = 0.0
    to_host: float = 0.0
    write: float = 0.0
    wait_for_blocks: float = 0.0
    wait_for_images: float = 0.0
    wait_for_device: float = 0.0
    wait_for_write: float = 0.0

    def add(self, other: "StageSeconds") -> None:
        """Add the times of another run or process."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def bottleneck(self) -> str:
        """In words, with what to do about it."""
        wall = max(self.wall, 1e-9)
        waits = {
            "decoding images (raise --workers, or read from a faster disk)": self.wait_for_images,
            "the driver's blocks (take larger --block-rows)": self.wait_for_blocks,
            "writing the store (put it on a faster disk or a nearer bucket)": self.wait_for_write,
        }
        stage, waited = max(waits.items(), key=lambda each: each[1])
        if waited > MUCH * wall:
            return f"{stage}: {waited / wall:.0%} of the time was spent waiting for it"
        return f"the teacher's forward pass: {self.forward / wall:.0%} of the time"

    def lines(self) -> list[str]:
        """Return the times as lines of text."""

        def in_words(*names: str) -> str:
            shares = [(name.replace("_", " "), getattr(self, name)) for name in names]
            return ", ".join(f"{name} {s:.1f} s" for name, s in shares if s >= 0.05) or "no time"

        return [
            f"time: {self.wall:.1f} s, of which the device took: "
            f"{in_words('to_device', 'forward', 'encode', 'to_host')}",
            f"waiting: {in_words(*WAITS)}; beside it: {in_words('read', 'render', 'write')}",
            f"bottleneck: {self.bottleneck}",
        ]
