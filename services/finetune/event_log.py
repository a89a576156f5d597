"""Learning curves as TensorBoard reads them."""

import io
import struct
from collections.abc import Mapping, Sequence

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c


def event_log(history: Sequence[Mapping[str, float]]) -> bytes:
    """An events file: a scalar for each entry of each epoch, `epoch` being the step.

    Times are the steps as seconds: those of the clock would make equal runs write different files.
    """
    target = io.BytesIO()
    _write(target, Event(wall_time=0.0, file_version="brain.Event:2"))
    for entry in history:
        step = int(entry["epoch"])
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in entry.items() if tag != "epoch"]
        _write(target, Event(wall_time=float(step), step=step, summary=Summary(value=values)))
    return target.getvalue()


def _write(target: io.BytesIO, event: Event) -> None:
    """A record of TensorFlow's format: length, its checksum, the event, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    for content in (length, data):
        target.write(content + struct.pack("<I", masked_crc32c(content)))
