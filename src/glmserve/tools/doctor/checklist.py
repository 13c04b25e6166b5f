"""All checks in the order in which they are made.  A new one is a function in `checks` and its line here."""

from __future__ import annotations

from collections.abc import Sequence

from glmserve.protocol.errors import SettingsError
from glmserve.tools.doctor.checks import batching, device, http, machine, model
from glmserve.tools.doctor.patient import Check, Subject

ALL = (
    Check("answers", "It answers a message", "service", batching.answers),
    Check("pulses", "Messages share the model", "service", batching.pulses),
    Check("head_of_line", "Short beside long", "service", batching.head_of_line),
    Check("responsive", "Pages while it writes", "service", batching.responsive),
    Check("web_layer", "The web layer", "service", http.web_layer),
    Check("keep_alive", "Connections are kept", "service", http.keep_alive),
    Check("streaming", "Answers are streamed", "service", http.streaming),
    Check("cancel", "Stops when a client leaves", "service", http.cancel),
    Check("offload", "All layers on the GPU", "service", device.offload),
    Check("host_bound", "The GPU need not wait", "service", device.host_bound),
    Check("decode_speed", "Speed of one answer", "service", device.decode_speed),
    Check("served_dtype", "Numbers in use", "service", device.served_dtype),
    Check("config", "config.json", "folder", model.config),
    Check("weights", "All weight files", "folder", model.weights),
    Check("whole_files", "Weight files are whole", "folder", model.whole_files),
    Check("lfs_pointers", "No git-lfs pointers", "folder", model.lfs_pointers),
    Check("tokenizer", "Tokenizer", "folder", model.tokenizer),
    Check("dtype", "Numbers of the weights", "folder", model.dtype),
    Check("memory", "Room for the model", "folder", model.memory),
    Check("disk", "Room on the disk", "folder", model.disk),
    Check("throttling", "Full clocks", "machine", device.throttling),
    Check("pcie", "PCIe link", "machine", device.pcie),
    Check("driver", "Driver and torch", "machine", machine.driver),
    Check("limits", "Open files allowed", "machine", machine.limits),
)


def select(names: str | None) -> tuple[Check, ...]:
    """The checks of these names, with commas between; all where None.  Raises SettingsError for a name that is none."""
    if names is None:
        return ALL
    wanted = [name.strip().replace("-", "_") for name in names.split(",") if name.strip()]
    known = {check.name: check for check in ALL}
    if strangers := [name for name in wanted if name not in known]:
        raise SettingsError(f"there is no check {strangers[0]!r}; the checks are {', '.join(known)}.")
    if not wanted:
        raise SettingsError("--checks takes names with commas between; `glmserve doctor --list` shows them.")
    return tuple(check for check in ALL if check.name in wanted)


def applicable(checks: Sequence[Check], subject: Subject) -> list[Check]:
    """Those made on a service, or on a folder; the machine's go with both.  Raises SettingsError where none of `checks` is."""
    found = [check for check in checks if check.subject in (subject, "machine")]
    if not found:
        names, examined = ", ".join(check.name for check in checks), {"service": "a running server", "folder": "a model folder"}
        raise SettingsError(
            f"--checks {names}: nothing of that can be examined on {examined[subject]}; `glmserve doctor --list` says what can."
        )
    return found
