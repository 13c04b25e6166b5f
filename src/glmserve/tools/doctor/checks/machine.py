"""This machine, whatever is served: driver, torch, limits."""

from __future__ import annotations

from glmserve.tools.doctor.finding import Finding, NotApplicableError, fail, ok, warn
from glmserve.tools.doctor.patient import Patient

FEW_FILES = 1024  # 512 requests are let in by default: each is a socket, and there are more than sockets
MIN_TORCH = (2, 11)


async def driver(patient: Patient) -> Finding:
    """Whether the installed torch was built for a CUDA that this driver runs.  torch is not imported."""
    patient.need_here()
    build, gpu = patient.machine.torch_build(), patient.need_gpu()
    if build is None:
        raise NotApplicableError("no torch is installed beside glmserve")
    assert gpu.driver_cuda is not None
    able = ".".join(map(str, gpu.driver_cuda))
    wants = ".".join(map(str, build.cuda or ()))
    evidence = {"driver": gpu.driver, "driver_cuda": able, "torch": build.version, "torch_cuda": wants or None}
    if build.cuda is None:
        return fail(
            f"torch {build.version} is built without CUDA: it cannot use {gpu.name}",
            "Install the CUDA build of torch for this Python (pytorch.org, Get Started, tells the command).",
            **evidence,
        )
    if build.cuda[0] > gpu.driver_cuda[0]:
        return fail(
            f"torch {build.version} wants CUDA {wants}, driver {gpu.driver} runs up to {able}",
            f"Update the NVIDIA driver, or install a torch built for CUDA {gpu.driver_cuda[0]}.x.",
            **evidence,
        )
    if tuple(map(int, build.version.split(".")[:2])) < MIN_TORCH:
        return warn(f"torch {build.version} is older than glmserve was made for", "Install torch 2.11 or newer.", **evidence)
    return ok(f"driver {gpu.driver} (CUDA {able}), torch {build.version} (CUDA {wants})", **evidence)


async def limits(patient: Patient) -> Finding:
    """How many files and sockets the server's process may open; this process's own limit where the server's cannot be seen."""
    patient.need_here()
    pid = patient.machine.process_listening_on(patient.service.port) if patient.trials is not None else None
    files = patient.machine.open_files(pid)
    if files is None:
        raise NotApplicableError("the system does not tell the limits (/proc)")
    whose = f"the server (process {pid})" if pid is not None else "a process started from here"
    evidence = {"pid": pid, "soft": files.soft, "hard": files.hard, "in_use": files.in_use if pid is not None else None}
    mend = (f"`ulimit -n {min(65536, files.hard)}` before it is started; in systemd LimitNOFILE=65536; in Docker --ulimit nofile=65536.",)
    if pid is not None and files.in_use is not None and files.in_use > 0.8 * files.soft:
        return fail(f"{whose} has {files.in_use} of {files.soft} files open: soon it refuses connections", *mend, **evidence)
    if files.soft < FEW_FILES:
        return warn(f"{whose} may open {files.soft} files and sockets, {FEW_FILES} are the least for many clients", *mend, **evidence)
    return ok(f"{whose} may open {files.soft} files and sockets", **evidence)
